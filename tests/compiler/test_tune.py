"""The search for the best variant within a budget, on tiny models and real engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tiny
from pages import Page
from tiny_data import labelled_rows, write_csv

from edgelm.compiler import compile, load_recipe
from edgelm.compiler.passes import lower, measure
from edgelm.compiler.passes.shrink import Shrink
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune import axes, make_plan, search
from edgelm.compiler.tune.search import WHOLE, Search
from edgelm.compiler.tune.space import Plan, Training
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import BudgetError
from edgelm.runtime.progress import Progress

QUIET = Progress("quiet")
TARGETS = ["onnx:fp32", "onnx:int8", "gguf:q8_0"]


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: Any) -> dict[str, Any]:
    """Recipe keys of a tiny classifier that is trained; the stages are kept between the tests."""
    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    root = tmp_path_factory.mktemp("tune")
    return {
        "model": str(tiny.make_model(root / "model")),
        "data.train": str(write_csv(root / "train.csv", labelled_rows(12))),
        "data.eval": str(write_csv(root / "eval.csv", labelled_rows(8, start=20))),
        "train.epochs": 3,
        "train.learning_rate": 0.01,
        "targets": TARGETS,
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "budget.vary": ["vocabulary"],
    }


def made(stated: dict[str, Any], **budget: Any) -> tuple[Recipe, Plan]:
    keys = {f"budget.{name}": value for name, value in budget.items()}
    recipe = load_recipe(None, stated | keys)
    return recipe, make_plan(recipe, QUIET)


@pytest.mark.slow
def test_the_best_point_within_the_size_and_its_recipe(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    """Every point is what a plain compile of its recipe makes; the best is found by hand."""
    _, plan = made(stated)
    names = {m.name for m in plan.models}
    assert names == {"whole model", "vocabulary used"}  # it has no 2000 tokens to leave out
    assert len(plan.trainings) == 2
    everything = search(plan, QUIET)
    assert {p.state for p in plan.points} == {"meets"}
    for point in plan.points:
        assert point.floor_bytes < (point.figures.size_bytes or 0)
        assert point.figures.latency_ms and point.figures.memory_bytes
    sizes = sorted(p.figures.size_bytes or 0 for p in plan.points)
    limit = sizes[2] / 1e6

    recipe, plan = made(stated, max_size=f"{limit:.6f}MB", max_drop=50)
    assert not plan.trainings  # both are kept
    found = search(plan, QUIET)
    best = found.best
    assert best is not None
    assert best.state == "meets"
    met = [p for p in everything.plan.points if (p.figures.size_bytes or 0) <= sizes[2]]
    highest = max(p.figures.metric or 0 for p in met)
    assert best.figures.metric == highest
    states = {p.name: p.state for p in plan.points}
    assert {states[p.name] for p in met} <= {"meets", "needless"}  # a gentler model is as good
    assert {name for name, state in states.items() if state == "meets"} <= {p.name for p in met}
    assert found.reference is not None
    for point in plan.points:
        if point.figures.metric is not None:
            drop = 100 * (found.reference - point.figures.metric)
            assert point.figures.drop_points == pytest.approx(drop)

    # with a budget `compile` makes the same bundle as from the recipe that `tune` writes
    first = compile(load_recipe(None, {**dict(_flat(recipe)), "output": str(tmp_path / "a")}))
    (variant,) = first.manifest.variants
    assert (variant.target, variant.precision) == tuple(best.spec.split(":"))
    assert variant.size_bytes == best.figures.size_bytes
    assert variant.metrics["accuracy"] == pytest.approx(highest, abs=1e-6)
    again = load_recipe(Bundle(first.path).root / "recipe.yaml", {"output": str(tmp_path / "b")})
    assert not again.budget.has_bounds
    assert 'id="search"' in (first.path / "report.html").read_text(encoding="utf-8")
    (same,) = compile(again).manifest.variants
    assert same.files == variant.files
    assert same.golden == variant.golden


def _flat(recipe: Recipe) -> list[tuple[str, Any]]:
    from edgelm.compiler.options import leaves

    def value(path: tuple[str, ...]) -> Any:
        found: Any = recipe
        for part in path:
            found = getattr(found, part)
        return found

    said = recipe.origins
    return [(x.key, value(x.path)) for x in leaves(Recipe) if said[x.key] != "default"]


def test_a_new_axis_has_points(stated: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keys an axis sets, a value of it makes models of its own."""
    half = {"prune.layers": 0.5}
    values = {"even": half, "measured": half | {"prune.layer_choice": "measured"}}
    monkeypatch.setattr(axes, "AXES", (axes.Axis("layers", {"all": {}, **values}, _fits),))
    _, plan = made(stated | {"budget.vary": ["layers"]})
    assert [m.name for m in plan.models] == ["whole model", "layers even", "layers measured"]
    assert all(len(m.points) == len(TARGETS) for m in plan.models)
    even, measured = (m.trainings for m in plan.models[1:])
    assert even[0].key == measured[0].key  # the teacher of both
    assert even[1].key != measured[1].key
    drop = made(stated, max_drop=40)[1].models[0].context.recipe
    assert (drop.verify.max_drop, drop.distil.max_drop) == (0.4, 0.4)


def _fits(recipe: Recipe, decoder: bool) -> bool:
    return True


def test_time_is_kept_for_what_is_left_of_a_training(stated: dict[str, Any]) -> None:
    """By a clock of the test's own: what models share is not counted twice, and what was kept tells
    nothing of the pace."""
    _, plan = made(stated | {"budget.vary": ["layers"], "seed": 7}, time_budget="100s")
    whole, third, half = plan.models
    for model in plan.models:
        model.trainings[0] = Training("finetune", "tune", 60.0)
    third.trainings[1] = Training("shrink", "third", 20.0)
    half.trainings[1] = Training("shrink", "half", 30.0)
    now = 0.0
    found = Search(plan, QUIET, lambda: now)
    found.note_trainings(whole, WHOLE, {})  # from the cache
    assert found.pace == 0
    found.note_trainings(third, WHOLE, {"finetune": 1.0, "shrink": 40.0, "merge": 500.0})
    assert found.pace == 41 / 80
    found.note_trainings(third, WHOLE, {"shrink": 40.0})
    assert found.pace == 2
    now = 39.0
    assert found.has_time_for(half)  # 60 s of 61
    assert found.has_time_for(half, Fraction(1, 3))  # 60 s: both trainings, as far as that
    now = 41.0
    assert not found.has_time_for(half)
    assert {p.state for p in half.points} == {"untried"}
    assert half.points[0].reason == "its training takes about 1 min, 1 min are left"


def test_points_that_are_too_large_for_sure_are_not_trained(stated: dict[str, Any]) -> None:
    _, plan = made(stated | {"targets": ["onnx:fp32"], "seed": 5}, max_size="1kB")
    assert [p.state for p in plan.points] == ["misses"] * 2
    assert not plan.trainings
    found = search(plan, QUIET)
    assert found.best is None
    assert found.nearest[0].model == "vocabulary used"  # the smaller one
    assert "at least size" in found.nearest[0].reason


def test_nothing_meets_it_on_the_command_line(
    run_cli, stated: dict[str, Any], tmp_path: Path
) -> None:
    args = ["tune", stated["model"], "--train", stated["data.train"], "--eval", stated["data.eval"]]
    args += ["--epochs", 3, "--learning-rate", 0.01, "--threads", 1, "-q", "--vary", "vocabulary"]
    args += ["--cache-dir", stated["cache_dir"], "--best", tmp_path / "best.yaml"]
    args += ["--report", tmp_path / "tune.html"]
    args += [x for target in TARGETS for x in ("--target", target)]
    plan = run_cli(*args, "--dry-run", "--json")
    assert plan.code == 0
    assert len(plan.rows[0]["points"]) == 6
    run = run_cli(*args, "--max-memory", "1MB", "--max-drop", 50, "--json")
    assert run.code == 4
    assert "error: no point meets the budget; the nearest are\n" in run.err
    assert "memory" in run.err
    assert {p["state"] for p in run.rows[0]["points"]} == {"misses"}
    assert not (tmp_path / "best.yaml").exists()
    page = Page((tmp_path / "tune.html").read_text(encoding="utf-8"))
    assert "No point meets the budget." in page.text
    run = run_cli(*args, "--max-latency", "10s")
    assert run.code == 0
    assert "recipe  " in run.out
    best = load_recipe(tmp_path / "best.yaml", {})
    assert f"gguf:{best.targets[0]}" in run.out or best.targets[0] in run.out
    page = Page((tmp_path / "tune.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2  # by size, by latency
    assert ("class", "ring") in page.attributes
    assert ("class", "bound") in page.attributes
    for point in plan.rows[0]["points"]:
        assert point["name"] in page.text
    with pytest.raises(BudgetError):
        compile(
            load_recipe(
                None, stated | {"budget.max_memory": "1MB", "output": str(tmp_path / "c.edgelm")}
            )
        )
    assert not (tmp_path / "c.edgelm").exists()


@pytest.mark.slow
def test_a_stopped_search_goes_on_from_the_cache(
    stated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run = lower.Lower.run

    def stopping(self: Any, context: Any, folder: Path) -> None:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(self.name)
        run(self, context, folder)

    monkeypatch.setattr(lower.Lower, "run", stopping)
    own = stated | {"seed": 1, "train.epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        search(made(own)[1], QUIET)
    ran.clear()
    _, plan = made(own)
    assert not plan.trainings
    search(plan, QUIET)
    assert len(ran) == 2  # of six
    assert all(p.state in ("meets", "failed") for p in plan.points)


@pytest.mark.slow
def test_what_promises_little_is_not_trained_in_full(
    stated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All trainings are begun, and in each round half of them is left behind."""
    epochs: list[float] = []
    run = Shrink.run

    def counted(self: Any, context: Any, folder: Path) -> None:
        epochs.append(context.recipe.distil.epochs)
        run(self, context, folder)

    monkeypatch.setattr(Shrink, "run", counted)
    own = stated | {"budget.vary": ["layers", "ffn"], "seed": 3, "distil.max_drop": 1.0}
    own |= {"distil.epochs": 4, "budget.halving": 2}
    largest = made(own)[1].models[1].points[0].floor_bytes / 1e6  # layers -1/3, onnx:fp32
    budget = {"max_latency": "10s", "max_size": f"{largest:.6f}MB", "max_drop": 90}
    _, plan = made(own, **budget)
    n = len(plan.models) - 1
    assert n in (4, 5)
    found = search(plan, QUIET)
    assert sorted(epochs) == [1.0] * n + [2.0] * -(-n // 2) + [4.0] * -(-n // 4)
    assert found.best is not None
    behind = {m.name for m in plan.models if any(p.state == "behind" for p in m.points)}
    assert len(behind) == n - -(-n // 4)
    assert found.best.model not in behind
    for point in plan.points:
        assert point.state in ("behind", "meets", "misses", "failed"), point
        if point.state == "behind":
            assert "of its epochs, place" in point.reason
        if point.state == "misses":
            assert "size" in point.reason
    epochs.clear()
    again = search(made(own, **budget)[1], QUIET)
    assert again.best is not None
    assert again.best.name == found.best.name
    assert not epochs  # all is kept


@pytest.mark.slow
def test_two_processes_share_the_work(stated: dict[str, Any], tmp_path: Path) -> None:
    """The same command twice at once, on one cache: each training is done by one of them."""
    args = [sys.executable, "-m", "edgelm", "tune", stated["model"], "--train"]
    args += [stated["data.train"], "--eval", stated["data.eval"], "--cache-dir", tmp_path / "cache"]
    args += ["--epochs", 1, "--learning-rate", 0.01, "--threads", 1, "--vary", "vocabulary"]
    args += ["--target", "onnx:fp32", "--target", "gguf:q8_0", "--json", "--log-json"]
    processes = [
        subprocess.Popen(
            [
                *map(str, args),
                "--best",
                f"{tmp_path}/{name}.yaml",
                "--report",
                f"{tmp_path}/{name}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    points = [json.loads(out)["points"] for out, _ in said]
    assert [p["state"] for p in points[0]] == [p["state"] for p in points[1]] == ["meets"] * 4
    events = [json.loads(line) for _, err in said for line in err.splitlines() if line[:1] == "{"]
    trained = [e for e in events if e["event"] == "done" and e["stage"] == "finetune"]
    assert len(trained) == 2  # the whole model, and the trimmed one
    recipes = [(tmp_path / f"{name}.yaml").read_text(encoding="utf-8") for name in "ab"]
    assert recipes[0].splitlines()[1:] == recipes[1].splitlines()[1:]


@pytest.mark.slow
def test_no_more_is_begun_after_the_time_budget(stated: dict[str, Any]) -> None:
    _, plan = made(stated | {"seed": 2, "train.epochs": 1}, time_budget="20s")
    found = search(plan, QUIET, clock=lambda: 21 * sum(p.state != "open" for p in plan.points))
    assert [p.state for p in plan.points[1:]] == ["untried"] * 5
    assert plan.points[0].state in ("meets", "failed")
    assert found.untried == plan.points[1:]
    assert not plan.models[1].context.training  # it was not even trained


def test_figures_of_another_device(run_cli, stated: dict[str, Any], tmp_path: Path) -> None:
    bundle = tmp_path / "all.edgelm"
    compile(load_recipe(None, stated | {"output": str(bundle)}))
    run = run_cli("profile", bundle, "--threads", 1, "--seconds", 0.02, "--batch", 2, "--tokens", 9)
    assert run.code == 0, run.err
    data = json.loads(run.out)
    for variant in data["variants"]:
        assert (variant["measured"]["latency_batch"], variant["measured"]["latency_tokens"]) == (
            2,
            9,
        )
        variant["measured"]["latency_ms_p50"] = 1000.0 if variant["target"] == "onnx" else 7.0
    file = tmp_path / "device.json"
    file.write_text(json.dumps(data))
    own = stated | {"measure.batch": 2, "measure.tokens": 9}
    _, plan = made(own, max_latency="8ms", device_profile=str(file))
    found = search(plan, QUIET)
    assert found.best is not None
    assert found.best.name == "whole model, gguf:q8_0"
    assert found.best.figures.latency_ms == 7.0
    trimmed = [p for p in plan.points if p.state != "failed" and p.model != "whole model"]
    assert {p.state for p in trimmed} == {"unknown"}  # never profiled: no figure is made up
    _, plan = made(own | {"threads": 2}, max_latency="8ms", device_profile=str(file))
    assert search(plan, QUIET).best is None  # what one thread takes says nothing of two


@pytest.mark.slow
def test_embeddings_are_compared_by_cosine(
    compile_tiny: Callable[..., Path], stated: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny.make_model(tmp_path / "model", labels=None)
    keys = {"model": str(model), "task": "feature-extraction", "data.train": None}
    base = {k: v for k, v in stated.items() if not k.startswith(("train.", "data.train"))}
    recipe = load_recipe(None, base | keys | {"budget.max_drop": 5})
    plan = make_plan(recipe, QUIET)
    assert [m.name for m in plan.models] == ["whole model"]  # no texts to trim by
    found = search(plan, QUIET)
    assert found.quality == "cosine"
    assert found.best is not None
    assert found.best.spec == "onnx:fp32"
