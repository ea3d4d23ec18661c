"""Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all trainings are begun with
few epochs, those that promise least are left behind, and the others are trained longer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Rung:
    """One round."""

    part: Fraction  # of the epochs
    n_kept: int  # trainings


def rungs(n: int, factor: int) -> list[Rung]:
    """The rounds before what is left of `n` trainings is done in full: each has `factor` times the
    epochs of the one before, and keeps one training of `factor`. A factor of 1 gives none."""
    n_rounds, left = 0, n
    while factor > 1 and left >= factor:
        left, n_rounds = left // factor, n_rounds + 1
    return [
        Rung(Fraction(1, factor ** (n_rounds - i)), math.ceil(n / factor ** (i + 1)))
        for i in range(n_rounds)
    ]
