"""What a search is made of: units, the budget, the front, the floors, the axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from edgelm.compiler import load_recipe
from edgelm.compiler.options import leaves
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune.axes import AXES, models, searched, targets
from edgelm.compiler.tune.budget import Figures, drop_points, read_budget
from edgelm.compiler.tune.front import pareto_front
from edgelm.compiler.tune.halving import rungs
from edgelm.compiler.tune.sizes import Weights, count_weights, floor_bytes
from edgelm.compiler.tune.space import for_targets
from edgelm.compiler.units import BYTES, LATENCY, TIME, parse, parse_bytes, show_bytes
from edgelm.runtime.errors import RecipeError
from edgelm.targets import all_precisions
from edgelm.targets.precision import TASKS


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("8MB", BYTES, 8e6),
        ("8 mib", BYTES, 8 * 2**20),
        (".5GB", BYTES, 5e8),
        ("3ms", LATENCY, 3.0),
        ("1e-3 s", LATENCY, 1.0),
        ("60m", TIME, 3600.0),
        ("1.5h", TIME, 5400.0),
    ],
)
def test_units(text: str, units: dict[str, float], value: float) -> None:
    assert parse("k", text, units) == pytest.approx(value)


@given(st.integers(1, 10**12))
def test_a_size_that_is_shown_is_enough(n_bytes: int) -> None:
    assert n_bytes <= parse_bytes("k", show_bytes(n_bytes)) <= max(n_bytes * 1.01, n_bytes + 10)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"max_size": "8"}, "budget.max_size: '8': a unit is needed"),
        ({"max_size": "8XB"}, "unknown unit 'XB'"),
        ({"max_size": "-8MB"}, "must be over 0"),
        ({"max_size": "big"}, "is no number with a unit"),
        ({"max_latency": "3m"}, "unknown unit 'm'"),
        ({"time_budget": "1d"}, "unknown unit 'd'"),
        ({"max_drop": -1.0}, "must be 0 or more"),
        ({"min_metric": 92.0}, "metrics are shares"),
        ({"min_metric": 0.9, "task": "text-generation"}, "less is better"),
        ({"measure.batch": 0}, "must be at least 1"),
        ({"measure.tokens": 300}, "texts are cut to 128"),
        ({"measure.batch": 2, "task": "text-generation"}, "first token"),
    ],
)
def test_refused_before_any_work(keys: dict[str, Any], says: str) -> None:
    full = {k if "." in k or k == "task" else f"budget.{k}": v for k, v in keys.items()}
    with pytest.raises(RecipeError, match=says):
        load_recipe(None, {"model": "m", **full})


costs = st.lists(st.tuples(*[st.integers(0, 4) | st.just(math.inf)] * 3), max_size=12)


@given(costs)
def test_the_front_is_what_nobody_dominates(rows: list[tuple[float, ...]]) -> None:
    def worse(a: tuple[float, ...]) -> bool:
        return any(
            all(b[k] <= a[k] for k in range(3)) and any(b[k] < a[k] for k in range(3)) for b in rows
        )

    assert pareto_front(rows) == [not worse(row) for row in rows]


def test_a_budget_judges_what_is_known() -> None:
    keys = {"max_size": "8MB", "max_drop": 1.5, "min_metric": 0.9, "max_latency": "3ms"}
    recipe = load_recipe(None, {"model": "m", **{f"budget.{k}": v for k, v in keys.items()}})
    budget = read_budget(recipe)
    good = Figures(8_000_000, 0.9, 1.5, 3.0)
    assert budget.is_met(good)
    assert budget.misses(good) == ()
    assert not budget.is_met(Figures(8_000_000, 0.9, 1.5))
    assert budget.unknown(Figures(8_000_000, 0.9, 1.5)) == ("latency",)
    assert not budget.is_met(Figures(8_000_000, 0.9, math.nan, 3.0))
    assert budget.misses(Figures(9_000_000, 0.8, 2.5)) == (
        "size 9 MB > 8 MB", "drop 2.5 points > 1.5 points", "metric 0.8 < 0.9",
    )  # fmt: skip
    near, far = Figures(8_100_000, 0.9, 1.5, 3.0), Figures(16_000_000, 0.9, 1.5, 3.0)
    assert budget.distance(good) < budget.distance(near) < budget.distance(far)
    assert drop_points("accuracy", 0.91, 0.93) == pytest.approx(2)
    assert drop_points("perplexity", 10.1, 10.0) == pytest.approx(1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weights_are_counted_without_reading_them(family: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = tiny.make_model(tmp_path, family, labels=None)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    skipped = ("pooler", "position_embeddings", "token_type_embeddings")
    own = [
        math.prod(s) for n, s in shapes.items() if len(s) == 2 and not any(x in n for x in skipped)
    ]
    table = max(math.prod(s) for n, s in shapes.items() if "mbeddings" in n)
    stated = {"model": str(folder), "task": "feature-extraction"}
    weights = count_weights(folder, load_recipe(None, stated))
    assert (weights.stored, weights.multiplied) == (sum(own), sum(own) - table)
    if family == "modernbert":  # which loses no parts
        return
    halved = stated | {"prune.layers": 0.5, "data.train": "t.csv"}
    half = count_weights(folder, load_recipe(None, halved))
    assert half.stored - table == pytest.approx(weights.multiplied / 2, rel=0.1)


def test_axes_name_what_there_is() -> None:
    keys = {leaf.key for leaf in leaves(Recipe)}
    for axis in AXES:
        assert axis.keys <= keys
        assert next(iter(axis.values.values())) == {}


def test_variants_go_from_the_closest_to_the_smallest() -> None:
    whole_texts = (
        "onnx:fp32 gguf:f16 onnx:int8 gguf:q8_0 gguf:q6_k gguf:q5_k_m gguf:q5_0 onnx:int4 "
        "gguf:q4_k_m gguf:q4_0"
    )
    assert searched("text-classification") == searched("feature-extraction") == whole_texts.split()
    generation = (
        "gguf:f16 onnx:int8 gguf:q8_0 gguf:q6_k gguf:q5_k_m onnx:int4 gguf:q4_k_m gguf:q4_0 "
        "gguf:iq4_xs gguf:q3_k_m gguf:q2_k"
    )
    assert searched("text-generation") == generation.split()
    for _, row in all_precisions():
        assert set(row.searched) <= set(row.tasks)


def test_what_the_recipe_states_is_not_varied() -> None:
    free = load_recipe(None, {"model": "m", "data.train": "t.csv"})
    assert len(targets(free)) == len(searched("text-classification"))
    names = [name for name, _, _ in models(free, decoder=False)]
    assert names[0] == "whole model"
    assert {"vocabulary used", "layers -1/2", "vocabulary 2000, ffn -1/2"} < set(names)
    assert [name for name, _, _ in models(free, decoder=True)] == [
        "whole model", "recovery trained",
    ]  # fmt: skip
    tied = load_recipe(
        None,
        {"model": "m", "data.train": "t.csv", "prune.vocab": True, "targets": ["onnx:int8"]},
    )
    assert targets(tied) == ["onnx:int8"]
    assert not any("prune.vocab" in changes for _, changes, _ in models(tied, decoder=False))
    fixed = load_recipe(None, {"model": "m", "data.train": "t.csv", "budget.vary": ["targets"]})
    assert [changes for _, changes, _ in models(fixed, decoder=False)] == [{}]
    in_python = Recipe(model="m", targets=["gguf:q8_0"])
    assert targets(in_python) == ["gguf:q8_0"]


def test_what_is_for_other_targets_is_left_out_of_a_point() -> None:
    specs = ["onnx:int8", "gguf:auto", "gguf:q8_0"]
    stated = {"quantize.smooth": 0.5, "quantize.auto_size": "9MB", "data.train": "t.csv"}
    limits = {"verify.limits": {"gguf:q8_0": {"max_drop": 0.01}}}
    recipe = load_recipe(None, {"model": "m", "targets": specs, **stated, **limits})
    for spec, smooth, size, n_limits in (
        ("onnx:int8", 0.5, None, 0), ("gguf:auto", None, "9MB", 0), ("gguf:q8_0", None, None, 1),
    ):  # fmt: skip
        own = for_targets(recipe, [spec])
        assert own.targets == [spec]
        assert (own.quantize.smooth, own.quantize.auto_size) == (smooth, size)
        assert len(own.verify.limits) == n_limits


@given(st.integers(0, 300), st.integers(1, 10))
def test_each_rung_keeps_one_of_so_many(n: int, factor: int) -> None:
    found = rungs(n, factor)
    left, spent = n, 0.0
    for i, rung in enumerate(found):
        assert rung.part * factor ** (len(found) - i) == 1
        assert math.ceil(left / factor) <= rung.n_kept + 1
        assert 1 <= rung.n_kept < left
        spent += float(rung.part) * left
        left = rung.n_kept
    if factor == 1 or n < factor:
        assert not found
    else:
        assert left < factor + 1
        # each rung costs about n / factor ** n_rounds trainings, and so does the last, in full
        assert spent + left <= (len(found) + 1) * (n / factor ** len(found) + 1)


def test_every_precision_that_is_tried_has_a_least_size() -> None:
    weights = Weights(stored=8_000_000, multiplied=8_000_000)
    for task in TASKS:
        sizes = [floor_bytes(weights, spec) for spec in searched(task)]
        assert min(sizes) > 2_000_000, task  # over 2 bits a weight: of none it is unknown
    assert floor_bytes(weights, "gguf:q8_0") == 8_500_000
    assert floor_bytes(weights, "gguf:iq1_s") == floor_bytes(weights, "gguf:q8_0", own_types=True)
