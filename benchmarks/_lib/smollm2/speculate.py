"""Speculate: prompt lookup on rewriting and extraction, against plain greedy decoding.

Two loads of a variant: as usual, and with `speculate=True`, which alone can guess."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from _lib.compiled import Compiled
from _lib.results import Goal, at_least, report
from _lib.rounds import Spread, Told, Worker, ratios
from _lib.smollm2.bundle import GGUF_VARIANTS, Question, chat_worker, read_questions

MIN_GAIN = 1.5
ALL = "all"
GOALS = (ALL, "extraction")
N_ANSWER = 128  # about what a text takes that is copied


@dataclass(frozen=True)
class Answered:
    """A question, answered three times."""

    task: str
    kind: str  # extraction or rewriting
    plain: Told  # by the model as it is usually loaded
    lookup: Told
    unguessed: Told  # by the model that can guess

    @property
    def is_same(self) -> bool:
        """Whether guessing changed nothing."""
        return self.lookup["text"] == self.unguessed["text"]


def section(compiled: Compiled, *, rounds: int, threads: int) -> str:
    """Every question both ways, in turns."""
    questions = read_questions()
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for variant in GGUF_VARIANTS:
        with (
            chat_worker(compiled, variant, threads) as usual,
            chat_worker(compiled, variant, threads, {"speculate": True}) as guessing,
        ):
            found = [_round(usual, guessing, questions, i, rounds) for i in range(rounds)]
        names = list(dict.fromkeys(question.task for question in questions))
        kinds = list(dict.fromkeys(question.kind for question in questions))
        for name in [*names, *kinds, ALL]:
            picked = [[a for a in told if name in (ALL, a.task, a.kind)] for told in found]
            rows.append(_row(variant, name, picked))
            if name in GOALS:
                what = f"{variant}: prompt lookup, {name}, answer tokens/s"
                goals.append(at_least(what, MIN_GAIN, ratios(*_rates(picked)), "x"))
        same, n = sum(a.is_same for a in found[-1]), len(found[-1])
        what = f"{variant}: answers equal to plain ones"
        goals.append(Goal(what, f"{n} of {n}", f"{same} of {n}", same == n))
    said = (
        "Texts to copy with a change, or to pick sentences from, after one worked example "
        "(benchmarks/tasks/rewriting.json, written for this); the model's own answers, "
        f"of up to {N_ANSWER} tokens, greedy, {threads} threads, {rounds} rounds in turns. "
        "Tokens/s from the first piece of an answer to its last, prompts read anew. Plain: the "
        "model as it is usually loaded; lookup: loaded with speculate=True. Equal answers: "
        "those of the latter with and without guesses. Only tokens that stand in the prompt can "
        "be guessed: the model's q4_0, made from weights that were themselves 4 bits wide, seldom "
        "copies, and capital letters change the words that follow them."
    )
    head = ["variant", "task", "answer tokens", "plain, tokens/s", "lookup, tokens/s", "x"]
    return report([said], [*head, "equal answers"], rows, goals)


def _round(
    usual: Worker, guessing: Worker, questions: list[Question], i: int, rounds: int
) -> list[Answered]:
    found: list[Answered] = []
    for question in questions:
        plain, lookup, unguessed = (
            worker.ask(prompt=question.chat, max_tokens=N_ANSWER, speculate=way)
            for worker, way in ((usual, "off"), (guessing, "lookup"), (guessing, "off"))
        )
        found.append(Answered(question.task, question.kind, plain, lookup, unguessed))
    lookup_rates, plain_rates = _rates([found])
    sys.stderr.write(
        f"{usual.name} round {i + 1}/{rounds}: tokens/s {plain_rates[0]:.0f} plain, "
        f"{lookup_rates[0]:.0f} with lookup\n"
    )
    return found


def _rates(rounds: list[list[Answered]]) -> tuple[list[float], list[float]]:
    """Tokens/s of each round: (lookup, plain)."""

    def rate(told: list[Told]) -> float:
        return sum(t["answer_tokens"] - 1 for t in told) / sum(t["seconds"] for t in told)

    plain = [rate([a.plain for a in answers]) for answers in rounds]
    return [rate([a.lookup for a in answers]) for answers in rounds], plain


def _row(variant: str, name: str, rounds: list[list[Answered]]) -> list[str]:
    lookup, plain = _rates(rounds)
    last = rounds[-1]
    return [
        variant,
        name,
        f"{sum(a.plain['answer_tokens'] for a in last):,}",
        Spread.of(plain).show(0),
        Spread.of(lookup).show(0),
        ratios(lookup, plain).show(),
        f"{sum(a.is_same for a in last)} of {len(last)}",
    ]
