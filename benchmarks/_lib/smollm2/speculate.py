"""Speculate: prompt lookup on rewriting and extraction, against plain greedy decoding."""

from __future__ import annotations

import sys
from typing import Any

from _lib.compiled import Compiled
from _lib.results import Goal, goals_table, table
from _lib.rounds import Spread, Worker, ratios
from _lib.smollm2.bundle import GGUF, Question, chat_worker, read_questions

MIN_GAIN = 1.5
N_ANSWER = 128  # about what a text takes that is copied

Told = dict[str, Any]


def section(compiled: Compiled, *, rounds: int, threads: int) -> str:
    """Every question both ways, in turns."""
    questions = read_questions()
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for precision in GGUF:
        variant = f"gguf-{precision}"
        with chat_worker(compiled, variant, threads) as worker:
            found = [_round(worker, questions, i, rounds) for i in range(rounds)]
        names = list(dict.fromkeys(question.task for question in questions))
        for name in [*names, "all"]:
            picked = [_of(pairs, None if name == "all" else name) for pairs in found]
            rows.append(_row(variant, name, picked))
        gain = ratios(*_rates([_of(pairs, None) for pairs in found]))
        same, n = _same(_of(found[-1], None))
        what = f"{variant}: prompt lookup, answer tokens/s"
        found_gain = f"{gain.show()} x"
        goals.append(Goal(what, f">= {MIN_GAIN} x", found_gain, gain.median >= MIN_GAIN))
        what = f"{variant}: answers equal to plain ones"
        goals.append(Goal(what, f"{n} of {n}", f"{same} of {n}", same == n))
    head = ["variant", "task", "answer tokens", "plain, tokens/s", "lookup, tokens/s", "x"]
    return "\n".join(
        [
            "Texts to copy with a change, or to pick sentences from, after one worked example "
            "(benchmarks/tasks/rewriting.json, written for this); the model's own answers, "
            f"of up to {N_ANSWER} tokens, greedy, {threads} threads, {rounds} rounds in turns. "
            "Tokens/s from the first piece of an answer to its last, prompts read anew. Over 256 "
            "tokens llama.cpp sums the attention of a single token in one part for each thread "
            "and that of several tokens in one: a near tie can then fall the other way.",
            "",
            table([*head, "equal answers"], rows),
            "",
            goals_table(goals),
        ]
    )


def _round(
    worker: Worker, questions: list[Question], i: int, rounds: int
) -> list[tuple[str, Told, Told]]:
    """(task, plain, with lookup) of every question."""
    found: list[tuple[str, Told, Told]] = []
    for question in questions:
        plain, lookup = (
            worker.ask(prompt=question.chat, max_tokens=N_ANSWER, speculate=way)
            for way in ("off", "lookup")
        )
        found.append((question.task, plain, lookup))
    lookup_rates, plain_rates = _rates([_of(found, None)])
    sys.stderr.write(
        f"{worker.name} round {i + 1}/{rounds}: tokens/s {plain_rates[0]:.0f} plain, "
        f"{lookup_rates[0]:.0f} with lookup\n"
    )
    return found


def _of(pairs: list[tuple[str, Told, Told]], name: str | None) -> list[tuple[Told, Told]]:
    return [(plain, lookup) for task, plain, lookup in pairs if name in (None, task)]


def _rates(picked: list[list[tuple[Told, Told]]]) -> tuple[list[float], list[float]]:
    """Tokens/s of each round: (lookup, plain)."""

    def rate(told: list[Told]) -> float:
        return sum(t["answer_tokens"] - 1 for t in told) / sum(t["seconds"] for t in told)

    plain = [rate([a for a, _ in pairs]) for pairs in picked]
    return [rate([b for _, b in pairs]) for pairs in picked], plain


def _same(pairs: list[tuple[Told, Told]]) -> tuple[int, int]:
    return sum(a["text"] == b["text"] for a, b in pairs), len(pairs)


def _row(variant: str, name: str, picked: list[list[tuple[Told, Told]]]) -> list[str]:
    lookup, plain = _rates(picked)
    same, n = _same(picked[-1])
    return [
        variant,
        name,
        f"{sum(a['answer_tokens'] for a, _ in picked[-1]):,}",
        Spread.of(plain).show(0),
        Spread.of(lookup).show(0),
        ratios(lookup, plain).show(),
        f"{same} of {n}",
    ]
