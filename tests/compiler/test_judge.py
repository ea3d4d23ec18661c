"""The rules of a search, by figures that are given: nothing is trained."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from edgelm.compiler import load_recipe
from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context
from edgelm.compiler.tune.budget import Figures, read_budget
from edgelm.compiler.tune.halving import Rung
from edgelm.compiler.tune.judge import Judge
from edgelm.compiler.tune.space import Model, Plan, Point, State
from edgelm.runtime.progress import Progress

MB = 1_000_000
SIZE = {"budget.max_size": "8MB"}
DROP = {"budget.max_drop": 1.0}
CHAT = {"task": "text-generation"}


def judge_of(
    *models: tuple[str, tuple[int, ...]], quality: str = "accuracy", **stated: Any
) -> Judge:
    """Of a plan whose models, by name and place, have the points onnx:int8 and gguf:q8_0."""
    recipe = load_recipe(None, {"model": "m", "data.train": "t.csv", **stated})

    def model(name: str, place: tuple[int, ...]) -> Model:
        points = [Point(name, spec, recipe, floor_bytes=1) for spec in recipe.targets]
        context = Context(recipe, StageCache(Path("unused")), Progress("quiet"))
        return Model(name, context, points, place, trainings=[], variant_s=1.0)

    judge = Judge(Plan(recipe, read_budget(recipe), None, [model(*m) for m in models]))
    judge.quality = quality
    return judge


@pytest.mark.parametrize(
    ("stated", "place", "state", "size_bytes", "value", "is_needless"),
    [
        (SIZE, (0, 0), "made", 7 * MB, 0.900, True),
        (SIZE, (0, 0), "made", 7 * MB, 0.898, True),  # 0.2 points lost
        (SIZE, (0, 0), "made", 7 * MB, 0.896, False),  # 0.4: another may lose less
        (SIZE, (0, 1), "made", 7 * MB, 0.900, True),
        (SIZE, (2, 0), "made", 7 * MB, 0.900, False),  # it leaves out more on one axis
        (SIZE, (0, 0), "open", 7 * MB, 0.900, False),
        (SIZE, (0, 0), "failed", 7 * MB, 0.900, False),
        (SIZE, (0, 0), "made", 9 * MB, 0.900, False),
        (SIZE, (0, 0), "made", None, 0.900, False),
        (SIZE, (0, 0), "made", 7 * MB, None, False),
        ({}, (0, 0), "made", 7 * MB, 0.900, False),  # no bound: the best is looked for
        ({"budget.max_latency": "9ms"}, (0, 0), "made", 7 * MB, 0.900, False),  # not known yet
        ({**SIZE, **DROP}, (0, 0), "made", 7 * MB, 0.900, False),  # no reference of drops yet
    ],
)
def test_a_gentler_model_that_is_as_good_makes_a_harsher_one_needless(
    stated: dict[str, Any],
    place: tuple[int, ...],
    state: State,
    size_bytes: int | None,
    value: float | None,
    is_needless: bool,
) -> None:
    judge = judge_of(("gentle", place), ("harsh", (1, 1)), **stated)
    gentle, harsh = judge.plan.models
    gentle.points[0].state = state
    gentle.points[0].figures = Figures(size_bytes, value)
    assert not judge.is_needless(harsh)  # nothing is known of the gentle one's reference
    judge.values["gentle"] = 0.9
    assert judge.is_needless(harsh) == is_needless
    assert {p.state for p in harsh.points} == {"needless" if is_needless else "open"}


@pytest.mark.parametrize(("perplexity", "is_needless"), [(10.02, True), (10.04, False)])
def test_what_perplexity_loses_counts_in_per_cent(perplexity: float, is_needless: bool) -> None:
    judge = judge_of(("gentle", (0,)), ("harsh", (1,)), quality="perplexity", **SIZE, **CHAT)
    gentle, harsh = judge.plan.models
    gentle.points[0].state, gentle.points[0].figures = "made", Figures(MB, perplexity)
    judge.values["gentle"] = 10.0
    assert judge.is_needless(harsh) == is_needless


@pytest.mark.parametrize(
    ("stated", "quality", "reference", "value", "state"),
    [
        (DROP, "accuracy", 0.9, 0.885, "open"),  # a variant may be a point better
        (DROP, "accuracy", 0.9, 0.875, "misses"),
        (DROP, "accuracy", None, 0.1, "open"),
        ({"budget.min_metric": 0.8}, "accuracy", None, 0.795, "open"),
        ({"budget.min_metric": 0.8}, "accuracy", None, 0.785, "misses"),
        ({"budget.max_drop": 5.0, **CHAT}, "perplexity", 10.0, 10.55, "open"),
        ({"budget.max_drop": 5.0, **CHAT}, "perplexity", 10.0, 10.65, "misses"),
        (SIZE, "accuracy", 0.9, 0.1, "open"),
    ],
)
def test_a_reference_far_over_a_bound_is_hopeless(
    stated: dict[str, Any], quality: str, reference: float | None, value: float, state: State
) -> None:
    judge = judge_of(("m", (1,)), quality=quality, **stated)
    judge.reference = reference
    judge.drop_hopeless(judge.plan.models[0], value)
    assert {p.state for p in judge.plan.points} == {state}


@pytest.mark.parametrize(
    ("quality", "promises", "n_kept", "kept", "lost"),
    [
        ("accuracy", {"a": 0.7, "b": 0.9, "c": 0.8}, 2, "bc", "a"),
        ("accuracy", {"a": 0.8, "b": 0.7, "c": 0.9}, 1, "c", "ab"),
        ("perplexity", {"a": 11.0, "b": 9.0, "c": 10.0}, 1, "b", "ca"),
        ("accuracy", {"a": 0.8, "b": 0.8, "c": 0.8}, 1, "a", "bc"),  # the gentlest of equals
        ("accuracy", {"a": 0.7, "c": 0.8}, 1, "c", "a"),  # b could not be tried
        ("accuracy", {}, 1, "", ""),
    ],
)
def test_the_promising_are_trained_on(
    quality: str, promises: dict[str, float], n_kept: int, kept: str, lost: str
) -> None:
    judge = judge_of(("a", (0,)), ("b", (1,)), ("c", (2,)), quality=quality)
    judge.promises = promises
    groups = [[model] for model in judge.plan.models]
    found = judge.compare(groups, Rung(Fraction(1, 9), n_kept))
    assert tuple("".join(m.name for group in side for m in group) for side in found) == (kept, lost)
    for place, name in enumerate(lost, n_kept + 1):
        said = f"{promises[name]:.4f} after 1/9 of its epochs, place {place} of {len(promises)}"
        assert judge.behind[name] == f"{quality} {said}"


def test_what_is_closed_for_the_first_of_a_group_is_for_all() -> None:
    judge = judge_of(("a", (0,)), ("a, recovered", (0,)), ("b", (1,)))
    first, second, other = judge.plan.models
    judge.promises = {"a": 0.7, "b": 0.9}
    first.points[0].close("misses", "too large")
    kept, lost = judge.compare([[first, second], [other]], Rung(Fraction(1, 3), 1))
    assert (kept, lost) == ([[other]], [[first, second]])
    assert [(p.state, p.reason) for p in second.points] == [("misses", "too large"), ("open", "")]
    first.points[1].close("failed", "no engine")
    assert judge.compare([[first, second]], Rung(Fraction(1, 3), 1)) == ([], [])
    assert not second.open_points


def test_a_point_is_concluded_by_all_bounds() -> None:
    judge = judge_of(("m", (0,)), ("n", (1,)), **SIZE, **DROP)
    (meets, over), (worse, unknown) = (m.points for m in judge.plan.models)
    for point, size, value in ((meets, 7, 0.895), (over, 9, 0.9), (worse, 7, 0.885)):
        point.state, point.figures = "made", Figures(size * MB, value)
    unknown.state, unknown.figures = "made", Figures(None, 0.9)
    judge.reference = 0.9
    for point in judge.plan.points:
        judge.conclude(point)
    assert [p.state for p in judge.plan.points] == ["meets", "misses", "misses", "unknown"]
    assert over.reason == "size 9 MB > 8 MB" and "drop 1.5" in worse.reason
    assert unknown.reason == "size: no figure from this machine"
    assert judge.front() == [meets, over]  # the worse one is as large as the first
    assert judge.rank(meets) < judge.rank(worse)
