"""Tokens as llama.cpp takes them, for the engine of whole texts."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """Where each of n tokens stands: its sequence and its position in it, both int32 (n,)."""

    sequences: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def of(cls, lengths: NDArray[np.int32]) -> Row:
        """Sequences of `lengths`, one behind another."""
        numbers = np.arange(len(lengths), dtype=np.int32)
        begins = np.cumsum(lengths) - lengths
        positions = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
        return cls(np.repeat(numbers, lengths), positions.astype(np.int32))

    def __getitem__(self, part: slice) -> Row:
        return Row(self.sequences[part], self.positions[part])


class Buffers:
    """The arrays behind a llama_batch, made once."""

    def __init__(self, library: Any, n: int, n_embd: int, with_vectors: bool) -> None:
        self.n_embd = n_embd  # H
        self._ids = np.zeros(n, dtype=np.int32)
        self._positions = np.zeros(n, dtype=np.int32)
        self._sequences = np.zeros(n, dtype=np.int32)
        self._ones = np.ones(n, dtype=np.int32)
        self._outputs = np.ones(n, dtype=np.int8)
        self._vectors = np.zeros((n if with_vectors else 0, n_embd), dtype=np.float32)
        # llama.cpp takes one pointer to the list of its sequences for each token
        address = self._sequences.ctypes.data
        self._pointers = np.arange(address, address + 4 * n, 4, dtype=np.uintp)
        fields = {name: kind for name, kind in library.llama_batch._fields_}
        self._kinds = fields
        self._batch = library.llama_batch()
        for name, array in (
            ("pos", self._positions),
            ("n_seq_id", self._ones),
            ("seq_id", self._pointers),
            ("logits", self._outputs),
        ):
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, fields[name]))

    def fill(
        self, ids: NDArray[np.int32], row: Row, vectors: NDArray[np.float32] | None = None
    ) -> Any:
        """A batch of `ids` (n,) that stand where `row` says; `vectors` (n, H) replace ids."""
        n = len(ids)
        self._sequences[:n] = row.sequences
        self._positions[:n] = row.positions
        batch = self._batch
        batch.n_tokens = n
        if vectors is None:
            self._ids[:n] = ids
            batch.token = ctypes.cast(self._ids.ctypes.data, self._kinds["token"])
            batch.embd = None
        else:
            self._vectors[:n] = vectors
            batch.token = None
            batch.embd = ctypes.cast(self._vectors.ctypes.data, self._kinds["embd"])
        return batch
