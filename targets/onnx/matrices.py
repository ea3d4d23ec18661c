"""Which of a model's matrices a matrix of the graph was made of, told by their rows, which are
moved about on the way but not changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class Matrices:
    """A model's matrices (N, K) in float32, found by their first rows."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._found: dict[bytes, list[tuple[str, Tensor]]] = {}
        for name, matrix in named:
            self._found.setdefault(_key(matrix[0]), []).append((name, matrix))

    def parts(self, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The matrices whose rows are those of weight (N, K), one behind the other; rows that are
        no one's are passed over."""
        row = 0
        while row < len(weight):
            n_rows = 1
            for name, matrix in self._found.get(_key(weight[row]), ()):
                if torch.equal(weight[row : row + len(matrix)], matrix):
                    yield name, matrix
                    n_rows = len(matrix)
            row += n_rows


def _key(row: Tensor) -> bytes:
    return row.contiguous().numpy().tobytes()
