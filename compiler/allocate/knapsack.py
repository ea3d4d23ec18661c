"""The multiple-choice knapsack: of each item one option, the least cost within a budget.

Sizes are counted in units: their greatest common divisor, and then the answer is exact. Where
that makes more than MAX_UNITS of them, a unit is larger and sizes are rounded up, so that the
budget holds and the answer is near the best; what is left over then buys what it can.

Letters: N items, U units in the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_UNITS = 100_000

Choice = tuple[int, float]  # bytes, cost


def least_bytes(items: Sequence[Sequence[Choice]]) -> int:
    """The smallest budget that there is an answer for."""
    return sum(min(n_bytes for n_bytes, _ in options) for options in items)


def solve(items: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The index of the option of each item; of equal costs the smaller one. The budget must be
    `least_bytes(items)` at least."""
    spare = budget - least_bytes(items)
    assert spare >= 0, (budget, spare)
    extras = [_extras(options) for options in items]
    spare = min(spare, sum(max(extra) for extra in extras))
    unit = math.gcd(*(size for extra in extras for size in extra)) or 1
    is_exact = spare // unit <= MAX_UNITS
    if not is_exact:
        unit = -(-spare // MAX_UNITS)
    in_units = [[-(-size // unit) for size in extra] for extra in extras]
    found = _dynamic(in_units, [[cost for _, cost in options] for options in items], spare // unit)
    return found if is_exact else _spend(items, found, budget)


def _extras(options: Sequence[Choice]) -> list[int]:
    """Bytes of each option over the smallest."""
    least = min(n_bytes for n_bytes, _ in options)
    return [n_bytes - least for n_bytes, _ in options]


def _dynamic(sizes: list[list[int]], costs: list[list[float]], U: int) -> list[int]:
    """Exact, by dynamic programming over items and units."""
    best: NDArray[np.float64] = np.zeros(U + 1)  # of the items so far, with so many units or fewer
    chosen: list[NDArray[np.int16]] = []
    for size_of, cost_of in zip(sizes, costs, strict=True):
        new = np.full(U + 1, np.inf)
        which = np.zeros(U + 1, np.int16)
        # smaller ones first, so that a larger one must be better to be taken
        for i in sorted(range(len(size_of)), key=lambda i: (size_of[i], i)):
            size = size_of[i]
            if size > U:
                continue
            with_it = best[: U + 1 - size] + cost_of[i]
            better = with_it < new[size:]
            new[size:][better] = with_it[better]
            which[size:][better] = i
        best = new
        chosen.append(which)
    found: list[int] = []
    left = U
    for which, size_of in zip(reversed(chosen), reversed(sizes), strict=True):
        found.append(int(which[left]))
        left -= size_of[found[-1]]
    return found[::-1]


def _spend(items: Sequence[Sequence[Choice]], found: list[int], budget: int) -> list[int]:
    """Change single options, the best for its bytes first, as long as some fit."""
    left = budget - sum(options[i][0] for options, i in zip(items, found, strict=True))
    while True:
        steps = [
            ((options[now][1] - cost) / max(1, n_bytes - options[now][0]), k, i)
            for k, (options, now) in enumerate(zip(items, found, strict=True))
            for i, (n_bytes, cost) in enumerate(options)
            if cost < options[now][1] and n_bytes - options[now][0] <= left
        ]
        if not steps:
            return found
        _, k, i = max(steps)
        left -= items[k][i][0] - items[k][found[k]][0]
        found[k] = i
