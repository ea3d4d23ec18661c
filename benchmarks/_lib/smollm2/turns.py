"""Turns: the second turn of a chat, whose first the engine still holds, against reading it anew."""

from __future__ import annotations

from _lib.compiled import Compiled
from _lib.results import Goal, at_most, report
from _lib.rounds import Spread, Told, Worker, ratios
from _lib.smollm2.bundle import GGUF_VARIANTS, in_rounds, read_questions

MAX_SHARE = 0.3
N_ANSWER = 48
SECOND = "Thank you. And what does the shortest of the texts say?"


def section(compiled: Compiled, *, rounds: int, threads: int) -> str:
    """The first turn, then the second both ways."""
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for variant in GGUF_VARIANTS:
        found = in_rounds(compiled, variant, threads, rounds, _round, _say)
        held, anew = [a["first_s"] for a, _ in found], [b["first_s"] for _, b in found]
        share = ratios(held, anew)
        last = found[-1][0]
        counts = [f"{last[name]:,}" for name in ("prompt_tokens", "reused_tokens")]
        times = [Spread.of([1e3 * s for s in seconds]).show(0) for seconds in (anew, held)]
        rows.append([variant, *counts, *times, share.show()])
        what = f"{variant}: second turn, time to first token"
        goals.append(at_most(what, MAX_SHARE, share, "x"))
    said = (
        "A chat with a long first message; the second turn's prompt is the whole "
        "conversation and a new question. Milliseconds from the call to the first piece of "
        f"text, {threads} threads, {rounds} rounds in turns: after the first turn, and after "
        "another prompt, so that the engine holds nothing of the chat."
    )
    head = ["variant", "prompt tokens", "still held", "read anew, ms", "second turn, ms", "x"]
    return report([said], head, rows, goals)


def _round(worker: Worker) -> tuple[Told, Told]:
    """The second turn behind the first, and read anew."""
    long = "\n\n".join(question.text for question in read_questions())
    chat = [{"role": "user", "content": f"Read these texts.\n\n{long}\n\nWhat are they about?"}]
    first = worker.ask(prompt=chat, max_tokens=N_ANSWER)
    chat.append({"role": "assistant", "content": first["text"]})
    chat.append({"role": "user", "content": SECOND})
    held = worker.ask(prompt=chat, max_tokens=2, held=True)
    return held, worker.ask(prompt=chat, max_tokens=2)


def _say(found: tuple[Told, Told]) -> str:
    held, anew = found
    return f"{1e3 * held['first_s']:.0f} ms, read anew {1e3 * anew['first_s']:.0f} ms"
