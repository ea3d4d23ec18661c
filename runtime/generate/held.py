"""A sequence that the engine holds: what a new prompt begins with is not computed again.

V is the vocabulary's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.runtime.engine import Chunk, DecoderSession
from edgelm.runtime.metrics import Floats

PIECE_TOKENS = 512  # of a prompt at once: between pieces a caller can interrupt


class Held:
    """One slot of a session and the tokens it holds; what a new prompt begins with is kept."""

    def __init__(self, session: DecoderSession, slot: int = 0) -> None:
        self._session = session
        self._slot = slot
        self._ids: list[int] = []
        self._followed: list[int] = []  # the caller's list of the last call,
        self._n_followed = 0  # which began with so many of `_ids`
        self.context_tokens = session.context_tokens

    def logits(self, ids: list[int], guess: Sequence[int] = ()) -> Floats:
        """Logits (1 + guesses, V) after the last of `ids` and after each guess of what follows.
        They are the engine's memory, valid until the next call.

        A list that is given again may only have grown: its beginning is not looked at twice."""
        if ids is self._followed and not guess and self._is_next(len(ids)):
            rows = self._session.append(self._slot, ids[-1])
            self._ids.append(ids[-1])
            self._n_followed += 1
            return rows
        return self._extend(ids, guess)

    def _is_next(self, n_ids: int) -> bool:
        """Whether one token behind all that is held makes so many."""
        n = n_ids - 1
        return n == self._n_followed == len(self._ids) == self._session.length(self._slot)

    def _extend(self, ids: list[int], guess: Sequence[int]) -> Floats:
        n_rows, n_ids = 1 + len(guess), len(ids)
        kept = min(self._n_common(ids), n_ids - 1)
        self._followed, self._n_followed = ids, 0
        # an interrupt may have come between the engine's step and our note of it
        if kept < len(self._ids) or self._session.length(self._slot) != kept:
            self._session.truncate(self._slot, kept)
            del self._ids[kept:]
        new = [*ids[kept:], *guess]
        rows: Floats | None = None
        while new:
            n = len(new)
            if n > PIECE_TOKENS:
                n = min(PIECE_TOKENS, n - n_rows)
            chunk = Chunk(self._slot, np.array(new[:n], np.int32), n_rows if n == len(new) else 0)
            rows = self._session.extend([chunk])
            self._ids += new[:n]
            del new[:n]
        self._n_followed = n_ids
        assert rows is not None
        return rows

    def n_kept(self, ids: list[int]) -> int:
        """How many of `ids` would not be computed anew."""
        return min(n_common(self._ids, ids), max(0, len(ids) - 1))

    def _n_common(self, ids: list[int]) -> int:
        """Length of the beginning that `ids` has in common with what is held."""
        held = self._ids
        if ids is not self._followed:
            return n_common(held, ids)
        at, end = self._n_followed, min(len(held), len(ids))
        while at < end and held[at] == ids[at]:
            at += 1
        return at


def n_common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
