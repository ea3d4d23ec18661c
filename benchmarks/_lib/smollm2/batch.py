"""Batch: a list of 8 prompts, answered side by side, against one after another."""

from __future__ import annotations

from _lib.compiled import Compiled
from _lib.results import Goal, at_least, report
from _lib.rounds import Spread, Told, Worker, ratios
from _lib.smollm2.bundle import GGUF_VARIANTS, in_rounds

MIN_GAIN = 2.0
N_ANSWER = 96
PROMPTS = (
    "Describe a walk through an old harbour town on a rainy morning.",
    "Explain to a child why the sea is salty and rivers are not.",
    "Write a letter to a friend who has moved to a farm in the hills.",
    "Tell the story of a clockmaker who loses his glasses.",
    "Give advice to somebody who wants to bake bread for the first time.",
    "Describe how a library lends books, from the shelf to the door.",
    "Write about the first day of a new train driver.",
    "Explain how a bicycle stays upright while somebody rides it.",
)


def section(compiled: Compiled, *, rounds: int, threads: int) -> str:
    """Both ways in turns, in one process."""
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for variant in GGUF_VARIANTS:
        found = in_rounds(compiled, variant, threads, rounds, _round, _say)
        alone, side = [a["rate"] for a, _ in found], [b["rate"] for _, b in found]
        gain = ratios(side, alone)
        one, other = found[-1]
        same = sum(a == b for a, b in zip(one["texts"], other["texts"], strict=True))
        speeds = [Spread.of(alone).show(0), Spread.of(side).show(0)]
        rows.append([variant, *speeds, gain.show(), f"{same} of {len(PROMPTS)}"])
        goals.append(at_least(f"{variant}: list of {len(PROMPTS)} prompts", MIN_GAIN, gain, "x"))
    said = (
        f"{len(PROMPTS)} prompts of about 30 tokens, up to {N_ANSWER} answer tokens each, "
        f"greedy, {threads} threads, {rounds} rounds in turns; answer tokens by the seconds "
        "of the whole call, prompts included."
    )
    head = ["variant", "one after another, tokens/s", "as a list, tokens/s", "x", "equal answers"]
    return report([said], head, rows, goals)


def _round(worker: Worker) -> tuple[Told, Told]:
    """One after another, and as a list."""
    alone: Told = {"texts": []}
    seconds = n_tokens = 0.0
    for prompt in PROMPTS:
        told = worker.ask(prompt=prompt, max_tokens=N_ANSWER)
        seconds += told["first_s"] + told["seconds"]
        n_tokens += told["answer_tokens"]
        alone["texts"].append(told["text"])
    alone["rate"] = n_tokens / seconds
    side = worker.ask(prompts=PROMPTS, max_tokens=N_ANSWER)
    side["rate"] = side["answer_tokens"] / side["seconds"]
    return alone, side


def _say(found: tuple[Told, Told]) -> str:
    alone, side = found
    return f"tokens/s {alone['rate']:.0f} one after another, {side['rate']:.0f} as a list"
