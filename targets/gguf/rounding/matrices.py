"""One matrix in one type, rounded with what is known of its uses."""

from __future__ import annotations

import torch

from edgelm.targets.curvature import Term
from edgelm.targets.feedback import factor
from edgelm.targets.gguf.rounding.feedback import round_matrix
from edgelm.targets.gguf.rounding.types import Bytes, Floats

COST_ROWS = 512  # of a matrix, evenly, that tell what a type costs
_LEAST = 1e-6  # of the mean of the columns' importance: none is free


class Rounder:
    """Rounds a matrix (R, C) into any type; what does not depend on the type is computed once."""

    def __init__(self, values: Floats, terms: list[Term]) -> None:
        self._weight = torch.from_numpy(values)
        self._sample = torch.linspace(0, len(values) - 1, min(len(values), COST_ROWS)).long()
        self._terms = [_of(term, self._sample) for term in terms]
        H = sum(term.moments * term.rows.mean() for term in terms)
        assert isinstance(H, torch.Tensor)
        columns = H.diagonal()
        mean = columns.mean()
        self._importance = (
            columns.clamp(min=_LEAST * float(mean)) if mean > 0 else torch.ones_like(columns)
        )
        self._factor = factor(H)

    def bytes(self, kind: str) -> Bytes:
        """The rows (R, bytes of a row)."""
        return round_matrix(self._weight, kind, self._factor, self._importance)[0]

    def cost(self, kind: str) -> float:
        """What the matrix in this type costs, as `Term` counts."""
        weight = self._weight[self._sample]
        _, values = round_matrix(weight, kind, self._factor, self._importance)
        return sum(term.cost(values - weight) for term in self._terms)


def _of(term: Term, sample: torch.Tensor) -> Term:
    """The term for a sample of rows, which stand for all."""
    rows = term.rows[sample]
    return Term(term.moments, rows * (term.rows.sum() / rows.sum()) if rows.any() else rows)
