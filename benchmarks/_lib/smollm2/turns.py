"""Turns: the second turn of a chat, whose first the engine still holds, against reading it anew."""

from __future__ import annotations

import sys
from typing import Any

from _lib.compiled import Compiled
from _lib.results import Goal, goals_table, table
from _lib.rounds import Spread, Worker, ratios
from _lib.smollm2.bundle import GGUF, chat_worker, read_questions

MAX_SHARE = 0.3
N_ANSWER = 48
SECOND = "Thank you. And what does the shortest of the texts say?"


def section(compiled: Compiled, *, rounds: int, threads: int) -> str:
    """The first turn, then the second both ways."""
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for precision in GGUF:
        variant = f"gguf-{precision}"
        with chat_worker(compiled, variant, threads) as worker:
            found = [_round(worker, i, rounds) for i in range(rounds)]
        held, anew = [a["first_s"] for a, _ in found], [b["first_s"] for _, b in found]
        share = ratios(held, anew)
        last = found[-1][0]
        rows.append(
            [
                variant,
                f"{last['prompt_tokens']:,}",
                f"{last['reused_tokens']:,}",
                Spread.of([1e3 * s for s in anew]).show(0),
                Spread.of([1e3 * s for s in held]).show(0),
                share.show(),
            ]
        )
        goals.append(
            Goal(
                f"{variant}: second turn, time to first token",
                f"<= {MAX_SHARE} x",
                f"{share.show()} x",
                share.median <= MAX_SHARE,
            )
        )
    head = ["variant", "prompt tokens", "still held", "read anew, ms", "second turn, ms", "x"]
    return "\n".join(
        [
            "A chat with a long first message; the second turn's prompt is the whole "
            "conversation and a new question. Milliseconds from the call to the first piece of "
            f"text, {threads} threads, {rounds} rounds in turns: after the first turn, and after "
            "another prompt, so that the engine holds nothing of the chat.",
            "",
            table(head, rows),
            "",
            goals_table(goals),
        ]
    )


def _round(worker: Worker, i: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    long = "\n\n".join(question.text for question in read_questions())
    chat = [{"role": "user", "content": f"Read these texts.\n\n{long}\n\nWhat are they about?"}]
    first = worker.ask(prompt=chat, max_tokens=N_ANSWER)
    chat.append({"role": "assistant", "content": first["text"]})
    chat.append({"role": "user", "content": SECOND})
    held = worker.ask(prompt=chat, max_tokens=2, held=True)
    anew = worker.ask(prompt=chat, max_tokens=2)
    sys.stderr.write(
        f"{worker.name} round {i + 1}/{rounds}: {1e3 * held['first_s']:.0f} ms, read anew "
        f"{1e3 * anew['first_s']:.0f} ms\n"
    )
    return held, anew
