"""A decoder small enough to check by eye: what comes next depends on little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import Chunk
from edgelm.runtime.errors import InputError

V = 40


def next_logits(ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits (V,) after `ids`; the oracle of every test."""
    seed = [ids[-1], len(ids) % 3]
    return np.random.default_rng(seed).normal(0, 2, V).astype(np.float32)


class ToyDecoder:
    """A DecoderSession that keeps its sequences as lists and counts what it computes."""

    device = "cpu"
    n_vocab = V
    n_guess = 5

    def __init__(self, n_slots: int = 1, context_tokens: int = 64) -> None:
        self.n_slots, self.context_tokens = n_slots, context_tokens
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.n_computed = 0
        self.n_calls = 0
        self.forks: list[ToyDecoder] = []
        self.closed = False

    def extend(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        assert not self.closed
        rows: list[NDArray[np.float32]] = []
        self.n_calls += 1
        for chunk in chunks:
            held = self.slots[chunk.slot]
            if len(held) + len(chunk.ids) > self.context_tokens:
                raise InputError("over the context")
        for chunk in chunks:
            held = self.slots[chunk.slot]
            for i, token in enumerate(chunk.ids.tolist()):
                held.append(token)
                self.n_computed += 1
                if i >= len(chunk.ids) - chunk.n_logits:
                    rows.append(next_logits(held))
        return np.stack(rows) if rows else np.empty((0, V), np.float32)

    def append(self, slot: int, token_id: int) -> NDArray[np.float32]:
        return self.extend([Chunk(slot, np.array([token_id], np.int32))])

    def length(self, slot: int) -> int:
        return len(self.slots[slot])

    def truncate(self, slot: int, n_tokens: int) -> None:
        del self.slots[slot][n_tokens:]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self.slots[target] = self.slots[source][:n_tokens]

    def fork(self, n_slots: int, context_tokens: int) -> ToyDecoder:
        self.forks.append(ToyDecoder(n_slots, context_tokens))
        return self.forks[-1]

    def close(self) -> None:
        self.closed = True
