"""Engine steps: one answer at a time with its prefix kept, or many side by side.

V is the vocabulary's size.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

from edgelm.runtime.engine import Chunk, DecoderSession
from edgelm.runtime.generate.answer import Answer, Step
from edgelm.runtime.generate.held import Held, n_common
from edgelm.runtime.generate.options import GenerateOptions

MIN_SHARED_TOKENS = 16  # a common beginning that is worth a copy


def step(held: Held, answer: Answer, visible: list[int]) -> list[Step]:
    """The next token of `answer`, and those after it that were guessed right."""
    guess = answer.guess()[: held.context_tokens - len(visible)]
    if guess and held.n_kept(visible) < len(visible) - 1:
        guess = []  # beside a prompt they would not be rounded as tokens of an answer are
    rows = held.logits(visible, guess)
    return answer.take(rows, guess)


def run_side_by_side(session: DecoderSession, answers: Sequence[Answer]) -> list[list[Step]]:
    """All answers to their ends, as many at once as the session has slots.

    The slots are empty before and after. Raises InputError where prompt and answer do not fit."""
    waiting = deque(enumerate(answers))
    free = list(range(session.n_slots))
    active: dict[int, int] = {}  # slot -> index of its answer
    steps: list[list[Step]] = [[] for _ in answers]
    try:
        while waiting or active:
            chunks: list[Chunk] = []
            while waiting and free:
                slot = heapq.heappop(free)
                index, answer = waiting.popleft()
                kept = _share(session, active, answers, answer, slot)
                active[slot] = index
                chunks.append(Chunk(slot, _array(answer.ids[kept:])))
                if kept == 0 and waiting and _shares(answer, waiting[0][1]):
                    break  # the next one copies from this
            if not chunks:
                chunks = [Chunk(s, _array(answers[i].ids[-1:])) for s, i in sorted(active.items())]
            rows = session.extend(chunks)
            for chunk, row in zip(chunks, rows, strict=True):
                index = active[chunk.slot]
                steps[index] += answers[index].take(row[None])
                if answers[index].finish_reason is not None:
                    del active[chunk.slot]
                    session.truncate(chunk.slot, 0)
                    heapq.heappush(free, chunk.slot)
    finally:
        for slot in active:
            session.truncate(slot, 0)
    return steps


def _shares(a: Answer, b: Answer) -> bool:
    return min(n_common(a.ids, b.ids), b.n_prompt - 1) >= MIN_SHARED_TOKENS


def _share(
    session: DecoderSession,
    active: dict[int, int],
    answers: Sequence[Answer],
    answer: Answer,
    slot: int,
) -> int:
    """Copy the beginning that `answer` has in common with one under way; its length."""
    best, source = 0, -1
    for other, index in active.items():
        held = answers[index].ids[: session.length(other)]
        n = min(n_common(held, answer.ids), answer.n_prompt - 1)
        if n > best:
            best, source = n, other
    if best < MIN_SHARED_TOKENS:
        return 0
    session.copy(source, slot, best)
    answer.n_reused = best
    return best


def greedy(
    session: DecoderSession,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
) -> list[list[int]]:
    """The likeliest answer to each prompt as token ids, up to and with an end token."""
    options = GenerateOptions(max_tokens=max_tokens)
    ends = frozenset(end_ids)
    answers = [Answer(p, options, end_ids=ends, max_tokens=max_tokens) for p in prompts]
    run_side_by_side(session, answers)
    return [a.ids[a.n_prompt :] for a in answers]


def _array(ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.asarray(ids, np.int32)
