"""Answers that grow side by side in the slots of one session; new ones join between steps.

V is the vocabulary's size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from edgelm.runtime.engine import Chunk, DecoderSession
from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.generate.answer import Answer, Step
from edgelm.runtime.generate.held import PIECE_TOKENS, n_common

MIN_SHARED_TOKENS = 16  # a common beginning that is worth a copy

Outcome = tuple[Answer, "list[Step] | EdgelmError"]


class Slots:
    """Takes prompts piece by piece, in turns with a token for each answer under way.

    What a new prompt has in common with a sequence that is held is not read again. One caller at a
    time."""

    def __init__(self, session: DecoderSession, *, keeps: bool = False) -> None:
        """keeps: finished sequences stay until their slot is needed, for prompts like them."""
        self._session = session
        self._keeps = keeps
        self._waiting: deque[Answer] = deque()
        self._active: dict[int, Answer] = {}  # slot -> answer
        self._free = list(range(session.n_slots))  # that were free longest first
        self._held: list[list[int]] = [[] for _ in self._free]  # ids of finished sequences
        self._read_last = False  # the last step read prompts

    def __len__(self) -> int:
        """Answers that wait or grow."""
        return len(self._waiting) + len(self._active)

    def join(self, answer: Answer) -> None:
        """Take up an answer; it waits where all slots are taken. Its prompt and longest answer
        must fit the session's context."""
        self._waiting.append(answer)

    def leave(self, answer: Answer) -> None:
        """Drop an answer before its end; one that is not here is no matter."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        for slot, other in self._active.items():
            if other is answer:
                self._release(slot)
                return

    def clear(self) -> None:
        """Drop all answers, and what the slots hold."""
        self._waiting.clear()
        for slot in list(self._active):
            self._release(slot)
        for slot, held in enumerate(self._held):
            self._session.truncate(slot, 0)
            held.clear()

    def step(self) -> list[Outcome]:
        """One step of the engine: what each answer that got tokens got, or why it ended early."""
        unread = [s for s, a in self._active.items() if self._is_unread(s, a)]
        growing = [s for s in sorted(self._active) if s not in unread]
        can_read = bool(unread or (self._waiting and self._free))
        # a long prompt is read in turns with the answers under way, so that none stands still
        if can_read and not (growing and self._read_last and self._keeps):
            chunks = self._reading(unread)
            self._read_last = True
        else:
            chunks = [Chunk(s, _array(self._active[s].ids[-1:])) for s in growing]
            self._read_last = False
        if not chunks:
            return []
        rows = iter(self._session.extend(chunks))
        outcomes: list[Outcome] = []
        for chunk in chunks:
            if chunk.n_logits == 0:
                continue
            answer, row = self._active[chunk.slot], next(rows)
            try:
                outcomes.append((answer, answer.take(row[None])))
            except EdgelmError as err:
                outcomes.append((answer, err))
                self._release(chunk.slot)
                continue
            if answer.finish_reason is not None:
                self._release(chunk.slot)
        return outcomes

    def _is_unread(self, slot: int, answer: Answer) -> bool:
        return answer.n_answer == 0 or self._session.length(slot) < len(answer.ids) - 1

    def _reading(self, unread: Iterable[int]) -> list[Chunk]:
        """The next piece of the prompts under way, and of those that can begin."""
        chunks: list[Chunk] = []
        room = PIECE_TOKENS
        for slot in unread:
            if room > 0:
                chunks.append(self._piece(slot, room))
                room -= len(chunks[-1].ids)
        while room > 0 and self._waiting and self._free:
            if chunks and any(_shares(self._active[c.slot], self._waiting[0]) for c in chunks):
                break  # it copies from what is being read
            chunks.append(self._piece(self._begin(self._waiting.popleft()), room))
            room -= len(chunks[-1].ids)
        return chunks

    def _piece(self, slot: int, room: int) -> Chunk:
        left = self._active[slot].ids[self._session.length(slot) :]
        return Chunk(slot, _array(left[:room]), 1 if len(left) <= room else 0)

    def _begin(self, answer: Answer) -> int:
        """Give the answer a slot that holds as much of its prompt as any."""
        most = answer.n_prompt - 1
        kept = {s: min(n_common(self._held[s], answer.ids), most) for s in self._free}
        grown = {
            s: min(n_common(a.ids[: self._session.length(s)], answer.ids), most)
            for s, a in self._active.items()
        }
        slot = max(self._free, key=lambda s: kept[s])  # of equals the one that was free longest
        n = kept[slot]
        source = max(grown, key=lambda s: grown[s], default=-1)
        copies = source >= 0 and grown[source] > n and grown[source] >= MIN_SHARED_TOKENS
        if copies or n < MIN_SHARED_TOKENS:
            slot, n = self._free[0], 0
        self._free.remove(slot)
        self._held[slot] = []
        if copies:
            n = grown[source]
            self._session.copy(source, slot, n)
        else:
            self._session.truncate(slot, n)
        answer.n_reused = n
        self._active[slot] = answer
        return slot

    def _release(self, slot: int) -> None:
        answer = self._active.pop(slot)
        self._free.append(slot)
        if self._keeps:
            self._held[slot] = answer.ids[: self._session.length(slot)]
        else:
            self._session.truncate(slot, 0)
            self._free.sort()


def _shares(a: Answer, b: Answer) -> bool:
    return min(n_common(a.ids, b.ids), b.n_prompt - 1) >= MIN_SHARED_TOKENS


def _array(ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.asarray(ids, np.int32)
