"""A search that processes share through a storage of optuna."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from optuna.trial import TrialState
from tiny_data import labelled_rows, write_csv

from edgelm.compiler import load_recipe
from edgelm.compiler.cache import StageCache
from edgelm.compiler.passes import measure
from edgelm.compiler.report import render_search
from edgelm.compiler.tune import make_plan, search, study
from edgelm.compiler.tune.axes import settings
from edgelm.compiler.tune.budget import Figures
from edgelm.compiler.tune.identity import study_name
from edgelm.compiler.tune.outcome import Outcome, PointOutcome
from edgelm.compiler.tune.show import found_report, found_text, point_json
from edgelm.compiler.tune.storage import open_storage, shown
from edgelm.compiler.tune.study import Study
from edgelm.runtime.errors import MissingExtra, RecipeError, StorageError
from edgelm.runtime.progress import Progress

QUIET = Progress("quiet")
MODELS = ["whole model", "vocabulary used", "layers -1/3", "vocabulary used, layers -1/3"]
MADE = Outcome(
    quality="accuracy",
    reference=0.1 + 0.2,
    promise=None,
    points={
        "onnx:int8": PointOutcome("made", "", Figures(12, 0.9, None, 1 / 3, 5), "a machine"),
        "gguf:q8_0": PointOutcome("failed", "verification: drop", Figures(9, 0.8), ""),
    },
)
NEEDLESS = Outcome("", None, None, {"onnx:int8": PointOutcome("needless", "x", Figures(), "")})


@pytest.fixture(params=["database", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    file = str(tmp_path / "study.log")
    return f"sqlite:///{file}" if request.param == "database" else file


def join(url: str, *, less: bool = False) -> Study:
    """As another process does."""
    return Study(url, "search", settings(MODELS), less=less, about={"model": "tiny"})


def test_of_many_that_begin_at_once_one_has_each_model(url: str) -> None:
    names = [f"vocabulary {i}" for i in range(12)]
    barrier, won = threading.Barrier(4), list[str]()

    def work() -> None:
        barrier.wait()
        own = Study(url, "search", settings(names), less=False, about={})
        for name in names:
            barrier.wait()
            with own.claim(name, name) as trial:
                if trial is not None:
                    won.append(name)
                    assert own.succeed(trial, NEEDLESS)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert won == names


def test_an_outcome_comes_as_it_was_told_and_optuna_shows_it(url: str) -> None:
    ours, theirs = join(url), join(url)
    with ours.claim("vocabulary used", "vocabulary used") as trial:
        assert trial is not None
        with theirs.claim("vocabulary used", "vocabulary used") as other:
            assert other is None
        assert theirs.claims()["vocabulary used"].outcome is None
        assert ours.succeed(trial, MADE)
    with ours.claim("layers -1/3", "layers -1/3") as trial:
        assert trial is not None
        ours.succeed(trial, NEEDLESS)
    draft = "layers -1/3, 1/3 of its epochs"
    with ours.claim(draft, "layers -1/3") as trial:
        assert trial is not None
        ours.succeed(trial, replace(NEEDLESS, promise=0.95))
    found = theirs.claims()
    assert found["vocabulary used"].outcome == MADE
    assert found["layers -1/3"].outcome == NEEDLESS
    assert set(found) == {"vocabulary used", "layers -1/3", draft}

    whole = optuna.load_study(study_name="search", storage=open_storage(url))
    assert whole.user_attrs == {"model": "tiny"}
    assert whole.best_value == 0.9
    assert whole.best_params == {"vocabulary": "used", "layers": "all"}
    states = [t.state for t in whole.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.PRUNED]


def test_less_is_better_of_perplexity(url: str) -> None:
    ours = join(url, less=True)
    with ours.claim("whole model", "whole model") as trial:
        assert trial is not None
        ours.succeed(trial, MADE)
    assert optuna.load_study(study_name="search", storage=open_storage(url)).best_value == 0.8


def test_who_stops_gives_the_model_back(url: str) -> None:
    ours, theirs = join(url), join(url)
    with pytest.raises(KeyboardInterrupt), ours.claim("whole model", "whole model"):
        raise KeyboardInterrupt
    assert theirs.claims() == {}
    with theirs.claim("whole model", "whole model") as trial:
        assert trial is not None


def test_who_dies_loses_the_model_and_who_is_slow_keeps_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "STALE_S", 2.0)
    monkeypatch.setattr(study, "BEAT_S", 1000.0)
    dead, slow, ours = join(url), join(url), join(url)
    death = dead.claim("whole model", "whole model")
    trial = death.__enter__()
    assert trial is not None
    monkeypatch.setattr(study, "BEAT_S", 0.1)
    with slow.claim("vocabulary used", "vocabulary used") as works:
        assert works is not None
        assert set(ours.claims()) == {"whole model", "vocabulary used"}
        until = time.monotonic() + 60
        while "whole model" in ours.claims() and time.monotonic() < until:
            time.sleep(0.1)
        assert set(ours.claims()) == {"vocabulary used"}
        with ours.claim("whole model", "whole model") as again:
            assert again is not None
            assert not dead.succeed(trial, MADE)  # it was only asleep
            assert ours.succeed(again, NEEDLESS)
        assert slow.succeed(works, MADE)
    assert {name: a.outcome for name, a in ours.claims().items()} == {
        "whole model": NEEDLESS,
        "vocabulary used": MADE,
    }
    death.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("postgresql+nodriver://me:secret@host/name", RecipeError, "no URL of a database"),
        ("sqlite://me:secret@host:x/name", RecipeError, "no URL of a database"),
        ("mysql://me:secret@host/name", RecipeError, "driver is not installed"),
        ("sqlite:///{here}/none/study.db", StorageError, "unable to open"),
        ("sqlite:///{here}/text", StorageError, "not a database"),
        ("{here}/none/study.log", StorageError, "No such file"),
        ("{here}/text", StorageError, "damaged"),
        ("{here}/torn", StorageError, "damaged"),
    ],
)
def test_storages_that_cannot_be_used(
    url: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no study, and longer than a header of SQLite " * 9)
    (tmp_path / "torn").write_text('{"op_code":0,"worker\n{"op_code":4}\n')
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(error, match=says) as caught:
        join(url.format(here=tmp_path))
    assert "secret" not in str(caught.value)
    assert caught.value.hint  # type: ignore[attr-defined]
    assert {file: file.read_bytes() for file in before} == before


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("postgresql://me:p@ss@host:1/name?password=x") == "postgresql://host:1/name"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"
    assert shown("/mnt/a@b.log") == "/mnt/a@b.log"


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra) as caught:
        make_plan(load_recipe(None, {"model": "m", "budget.study": "a.log"}), QUIET)
    assert caught.value.hint == 'install it with: pip install "edgelm[tune]"'


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recipe keys of a tiny classifier that is trained."""
    root = tmp_path_factory.mktemp("study")
    return {
        "model": str(tiny.make_model(root / "model")),
        "data.train": str(write_csv(root / "train.csv", labelled_rows(12))),
        "data.eval": str(write_csv(root / "eval.csv", labelled_rows(8, start=20))),
        "train.epochs": 1,
        "train.learning_rate": 0.01,
        "targets": ["onnx:fp32", "gguf:q8_0"],
        "threads": 1,
        "budget.vary": ["vocabulary"],
        "cache_dir": str(root / "cache"),
    }


def test_the_same_search_has_the_same_name_anywhere(stated: dict[str, Any], tmp_path: Path) -> None:
    def name(**changes: Any) -> str:
        keys = {key.replace("__", "."): value for key, value in changes.items()}
        return study_name(make_plan(load_recipe(None, {**stated, **keys}), QUIET))

    model = shutil.copytree(stated["model"], tmp_path / "elsewhere")
    data = tmp_path / "same.csv"
    data.write_bytes(Path(stated["data.train"]).read_bytes())
    first = name()
    elsewhere = {"cache_dir": str(tmp_path), "threads": 2, "output": "x", "data__train": str(data)}
    elsewhere["model"] = str(model)
    assert name(**elsewhere, budget__study="a.log", budget__time_budget="1h") == first
    others = [
        name(seed=1),
        name(budget__max_drop=1),
        name(data__train=stated["data.eval"], data__eval=stated["data.train"]),
        name(targets=["onnx:fp32"]),
        name(budget__vary=["targets"]),
        name(budget__max_latency="1s"),
    ]
    assert len({first, *others}) == 7


@pytest.mark.parametrize(("machines", "best"), [("aa", "onnx:fp32"), ("ab", "gguf:q8_0")])
def test_latencies_of_unlike_machines_are_not_compared(
    stated: dict[str, Any], machines: str, best: str
) -> None:
    plan = make_plan(load_recipe(None, stated | {"budget.vary": ["targets"]}), QUIET)
    fast, small = plan.points
    fast.figures, small.figures = Figures(20, 0.9, None, 1.0, 8), Figures(10, 0.9, None, 2.0, 9)
    for point, machine in zip(plan.points, machines, strict=True):
        point.state, point.measured_on = "made", machine
    found = search(plan, QUIET)
    assert found.best is not None
    assert found.best.spec == best
    assert ("not compared: a; b" in found_text(found)) == (machines == "ab")
    assert [p.spec for p in found.front] == (
        [best] if machines == "ab" else [fast.spec, small.spec]
    )
    page = render_search(found_report(found), "tiny", None)
    assert ("of several machines, are not compared: a; b" in page) == (machines == "ab")


def tune(stated: dict[str, Any], folder: Path, url: str) -> subprocess.Popen[str]:
    """`edgelm tune` on a cache of its own, whose beats are fast."""
    folder.mkdir(exist_ok=True)
    code = (
        "from edgelm.compiler.tune import study, turns; from edgelm.__main__ import main; "
        "study.BEAT_S, study.STALE_S, turns.LOOK_S = 0.5, 20.0, 0.5; main()"
    )
    args = ["tune", stated["model"], "--train", stated["data.train"], "--eval", stated["data.eval"]]
    args += ["--epochs", 1, "--learning-rate", 0.01, "--threads", 1, "--vary", "vocabulary"]
    args += ["--target", "onnx:fp32", "--target", "gguf:q8_0", "--json", "--log-json"]
    args += ["--cache-dir", folder / "cache", "--study", url, "--max-drop", 90]
    args += ["--best", folder / "best.yaml", "--report", folder / "tune.html"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    """What it printed, and how many trainings it ran."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    events = [json.loads(line) for line in err.splitlines()]
    done = [e for e in events if e["event"] == "done" and e["stage"] == "finetune"]
    return json.loads(out), len(done)


def wait_for(process: subprocess.Popen[str], stage: str) -> None:
    """Until it has ended the stage."""
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["stage"] == stage:
            return
    raise AssertionError(f"{stage} was not seen")


@pytest.mark.slow
def test_two_processes_without_a_common_cache(
    stated: dict[str, Any], tmp_path: Path, url: str
) -> None:
    """Each training is done by one of them; both know of all points, and take the same."""
    found = [tune(stated, tmp_path / name, url) for name in "ab"]
    (a, n_a), (b, n_b) = [ended(process) for process in found]
    assert n_a + n_b == 2  # the whole model, and the trimmed one
    assert a["best"] == b["best"]
    assert a["points"] == b["points"]
    assert {p["state"] for p in a["points"]} <= {"meets", "needless"}
    assert all(p["latency_ms"] and p["measured_on"] for p in a["points"] if p["state"] == "meets")
    recipes = [load_recipe(tmp_path / name / "best.yaml", {"cache_dir": ""}) for name in "ab"]
    assert recipes[0] == recipes[1]
    c, n_c = ended(tune(stated, tmp_path / "c", url))  # a third comes late
    assert (c["points"], n_c) == (a["points"], 0)


@pytest.mark.slow
def test_what_others_tell_is_as_good_as_a_cache(
    stated: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short trainings, too: who comes later leaves the same models behind, and trains nothing."""
    monkeypatch.setattr(measure, "SECONDS", 0.02)
    own = stated | {"targets": ["onnx:fp32"], "budget.vary": ["layers", "ffn"]}
    own |= {"budget.halving": 2, "budget.max_drop": 90, "distil.max_drop": 1.0, "distil.epochs": 2}
    own |= {"budget.max_latency": "10s", "budget.study": str(tmp_path / "study.log")}
    plans = [
        make_plan(load_recipe(None, own | {"cache_dir": str(tmp_path / n)}), QUIET) for n in "ab"
    ]
    first = search(plans[0], QUIET)
    monkeypatch.setattr(StageCache, "make", None)
    later = search(plans[1], QUIET)
    assert first.best is not None
    assert later.best is not None
    assert first.best.name == later.best.name
    assert "behind" in {p.state for p in plans[0].points}
    assert [point_json(p) for p in plans[0].points] == [point_json(p) for p in plans[1].points]


@pytest.mark.slow
def test_a_killed_process_is_made_up_for(stated: dict[str, Any], tmp_path: Path, url: str) -> None:
    killed = tune(stated, tmp_path / "killed", url)
    wait_for(killed, "finetune")
    killed.kill()
    killed.communicate()
    found, n_trained = ended(tune(stated, tmp_path / "other", url))
    assert n_trained == 2
    assert found["best"] is not None
    assert states(url)[0] == TrialState.FAIL


@pytest.mark.slow
def test_an_interrupted_search_goes_on(stated: dict[str, Any], tmp_path: Path) -> None:
    url = str(tmp_path / "study.log")
    stopped = tune(stated, tmp_path / "own", url)
    wait_for(stopped, "finetune")
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate()
    assert "Traceback" not in err
    assert states(url) == [TrialState.FAIL]  # at once
    found, n_trained = ended(tune(stated, tmp_path / "own", url))
    assert n_trained == 0  # it is kept, and good enough for the other to be needless
    assert {p["state"] for p in found["points"]} == {"meets", "needless"}
    assert found["best"] is not None


def states(url: str) -> list[TrialState]:
    """Of the trials of the one study."""
    storage = open_storage(url)
    (one,) = storage.get_all_studies()
    return [t.state for t in optuna.load_study(study_name=one.study_name, storage=storage).trials]
