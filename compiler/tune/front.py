"""Which points are not worse than another in everything."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is nowhere worse (larger) than `b`, and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def pareto_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """For each row of costs, all to be small, whether no other row dominates it."""
    front: list[int] = []
    # a row can only be dominated by one that sorts before it
    for i in sorted(range(len(costs)), key=lambda i: tuple(costs[i])):
        if not any(dominates(costs[j], costs[i]) for j in front):
            front.append(i)
    kept = set(front)
    return [i in kept for i in range(len(costs))]
