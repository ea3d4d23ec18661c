"""The prompts whose greedy answers are compared, and the texts that are checked on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from edgelm.compiler.chat.conversation import Conversation
from edgelm.compiler.chat.oracle import Prompt, spread
from edgelm.compiler.chat.samples import Sample, prompt_of
from edgelm.compiler.golden import N_GOLDEN, golden_texts
from edgelm.compiler.nasty import NASTY
from edgelm.runtime.manifest import Task

MAX_GOLDEN_CHARS = 2000  # golden texts stand in the manifest


def choose_prompts(
    rows: Sequence[Conversation],
    samples: Sequence[Sample],
    tokenizer: Any,
    task: Task,
    *,
    n: int,
    max_tokens: int,
) -> list[Prompt]:
    """Up to n different prompts of at most `max_tokens` tokens.

    They are the conversations, from the whole of the data, cut before their last answer; where
    those are too few, before earlier answers; then texts that tokenizers like to disagree on; then
    the samples cut in the middle of their last answer."""
    found: dict[tuple[int, ...], Prompt] = {}
    asked = ((prompt_of(row, tokenizer), _question(row)) for row in _asking(rows, n, task))
    for ids, question in chain(asked, ((ids, None) for ids in _begun(samples))):
        if 0 < len(ids) <= max_tokens and ids not in found:
            text = question or tokenizer.decode(ids, skip_special_tokens=True)
            found[ids] = Prompt(ids, text)
        if len(found) == n:
            break
    return list(found.values())


def golden(samples: Sequence[Sample], tokenizer: Any, task: Task) -> list[str]:
    """The golden texts; a chat's as its template renders them, special tokens and all."""
    texts = [
        tokenizer.decode(s.ids, skip_special_tokens=not task.chat)[:MAX_GOLDEN_CHARS]
        for s in spread(samples, 8 * N_GOLDEN)
    ]
    return golden_texts([text for text in texts if text.strip()], NASTY)


def _asking(rows: Sequence[Conversation], n: int, task: Task) -> Iterator[Conversation]:
    """Rows whose prompts are wanted, the best first."""
    first = spread(range(len(rows)), n)
    order = [rows[i] for i in [*first, *sorted(set(range(len(rows))) - set(first))]]
    yield from (row for row in order if _turns(row) or not row.messages)
    for row in order:
        for turn in reversed(_turns(row)[:-1]):
            yield replace(row, messages=row.messages[: turn + 1])
    for text in NASTY:
        if text.strip() and task.chat:
            asked = ({"role": "user", "content": text}, {"role": "assistant", "content": "a"})
            yield Conversation(Path(), 0, asked)
        elif text.strip():
            yield Conversation(Path(), 0, prompt=text, text="")


def _begun(samples: Sequence[Sample]) -> Iterator[tuple[int, ...]]:
    """The samples up to parts of what is to be said last."""
    for part in (0.5, 0.25, 0.75):
        for sample in samples:
            last = len(sample.ids)
            while not sample.targets[last - 1]:
                last -= 1
            first = last
            while sample.targets[first - 1]:
                first -= 1
            yield sample.ids[: first + round(part * (last - first))]


def _turns(row: Conversation) -> list[int]:
    """Where the assistant answers something."""
    return [i for i, m in enumerate(row.messages) if i > 0 and m["role"] == "assistant"]


def _question(row: Conversation) -> str | None:
    """What was said last before the answer."""
    turns = _turns(row)
    return str(row.messages[turns[-1] - 1].get("content", "")) if turns else row.prompt
