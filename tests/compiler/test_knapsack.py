"""The knapsack against every possible answer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.compiler.allocate import knapsack
from edgelm.compiler.allocate.knapsack import least_bytes, solve

OPTION = st.tuples(st.integers(1, 40), st.integers(0, 50))
ITEMS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def best_cost(items, budget: int) -> float:
    return min(
        sum(cost for _, cost in picked)
        for picked in itertools.product(*items)
        if sum(n for n, _ in picked) <= budget
    )


@settings(max_examples=300, deadline=None)
@given(items=ITEMS, unit=st.sampled_from([1, 32, 576]), spare=st.integers(0, 120))
def test_no_choice_within_the_budget_is_better(items, unit: int, spare: int) -> None:
    items = [[(n * unit, float(cost)) for n, cost in options] for options in items]
    budget = least_bytes(items) + spare * unit
    picked = [options[i] for options, i in zip(items, solve(items, budget), strict=True)]
    assert sum(n for n, _ in picked) <= budget
    assert sum(cost for _, cost in picked) == best_cost(items, budget)


@settings(max_examples=100, deadline=None)
@given(items=ITEMS, spare=st.integers(0, 120))
def test_in_larger_units_the_budget_still_holds(items, spare: int) -> None:
    items = [[(n, float(cost)) for n, cost in options] for options in items]
    budget = least_bytes(items) + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MAX_UNITS", 7)
        found = solve(items, budget)
    picked = [options[i] for options, i in zip(items, found, strict=True)]
    assert sum(n for n, _ in picked) <= budget
    # and nothing that is left over would buy anything
    left = budget - sum(n for n, _ in picked)
    for options, (now, cost) in zip(items, picked, strict=True):
        assert not any(c < cost and n - now <= left for n, c in options)
