"""Fine-tuning: it learns, is merged exactly, is kept, and goes on after a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from tiny_data import labelled_rows, write_csv

import edgelm
from edgelm.compiler import Recipe, compile, load_recipe
from edgelm.compiler.passes.finetune import add_adapters
from edgelm.compiler.training import CHECKPOINTS
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import RecipeError, VerificationError
from edgelm.runtime.progress import Progress
from edgelm.runtime.verify import verify_files

RUN = {"intake", "prepare", "gate", "pack"}  # cheap passes, which run each time


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session) -> dict[str, Any]:
    """A recipe that trains a bare encoder until it tells the three labels apart."""
    from edgelm.compiler.passes import measure

    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    root = tmp_path_factory.mktemp("training")
    return {
        "model": str(tiny.make_model(root / "model", "bert", labels=None)),
        "output": str(root / "trained.edgelm"),
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "targets": ["onnx:fp32", "gguf:q8_0"],
        "data.train": str(write_csv(root / "train.csv", labelled_rows(16))),
        "data.eval": str(write_csv(root / "eval.csv", labelled_rows(8, start=100))),
        "train.epochs": 8.0,
        "train.batch_size": 8,
        "train.learning_rate": 0.02,
        "train.precision": "fp32",
        "lora.rank": 4,
    }


@pytest.fixture(scope="module")
def trained(keys: dict[str, Any]) -> Path:
    return compile(load_recipe(None, keys)).path


def compile_again(keys: dict[str, Any], **changed: Any) -> dict[str, str]:
    """What became of each pass: `done` or `cached`."""
    stream = io.StringIO()
    compile(load_recipe(None, {**keys, **changed}), Progress("json", stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return {e["stage"]: e["event"] for e in events if e["event"] in ("done", "cached")}


def stage(keys: dict[str, Any], name: str) -> Path:
    (folder,) = [p for p in (Path(keys["cache_dir"]) / name).iterdir() if p.name[0] != "."]
    return folder


def test_it_learns_and_says_how(trained: Path, keys: dict[str, Any]) -> None:
    bundle = Bundle(trained)
    assert verify_files(bundle).ok
    assert bundle.manifest.reference["accuracy"] > 0.9
    assert bundle.manifest.task.labels == ("card_lost", "other", "refund")
    for variant in bundle.manifest.variants:
        assert variant.metrics["accuracy"] > 0.9
        with edgelm.load(trained, variant=variant.name, threads=1) as model:
            answers = model.predict(["i lost the card", "refund the money please"])
        assert [a.label for a in answers] == ["card_lost", "refund"]  # type: ignore[union-attr]
    history = json.loads((stage(keys, "finetune") / "history.json").read_text())
    assert history["method"] == "lora"
    epochs = history["epochs"]
    assert [e["epoch"] for e in epochs] == list(range(1, len(epochs) + 1))
    assert epochs[0]["eval_accuracy"] < max(e["eval_accuracy"] for e in epochs)
    assert epochs[-1]["loss"] < epochs[0]["loss"]


def test_merging_changes_nothing(trained: Path, keys: dict[str, Any]) -> None:
    merged = json.loads((stage(keys, "merge") / "merge.json").read_text())
    assert merged["n"] == 24
    assert merged["scale"] > 1
    assert merged["max_abs_diff"] < 1e-4 * merged["scale"]


def test_a_second_compile_takes_all_from_the_cache(trained: Path, keys: dict[str, Any]) -> None:
    before = (trained / "edgelm.json").read_bytes()
    events = compile_again(keys)
    assert {name for name, event in events.items() if event == "done"} == RUN
    assert {"finetune", "merge", "lower gguf-q8_0", "measure onnx-fp32"} <= set(events)
    assert (trained / "edgelm.json").read_bytes() == before


def test_another_limit_runs_nothing_heavy(trained: Path, keys: dict[str, Any], tmp_path) -> None:
    events = compile_again(keys, **{"verify.max_drop": 0.9, "output": str(tmp_path / "b")})
    assert {name for name, event in events.items() if event == "done"} == RUN


def test_another_seed_trains_again(trained: Path, keys: dict[str, Any], tmp_path: Path) -> None:
    changed = {"seed": 1, "output": str(tmp_path / "b"), "targets": ["gguf:q8_0"]}
    changed |= {"train.epochs": 1.0, "verify.max_kl": 9.0, "verify.min_agreement": 0.0}
    events = compile_again(keys, **changed, **{"verify.max_drop": 1.0})
    assert events["finetune"] == events["lower gguf-q8_0"] == "done"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_over_the_limit_no_bundle_is_written(trained: Path, keys: dict[str, Any]) -> None:
    before = tree(trained)
    changed = {"targets": ["onnx:fp32", "gguf:q8_0"], "release": 2}
    changed["verify.limits"] = {"gguf:q8_0": {"max_kl": 0.0}}
    with pytest.raises(VerificationError) as err:
        compile(load_recipe(None, {**keys, **changed}))
    assert err.value.exit_code == 4
    text = err.value.message
    assert "gguf-q8_0: mean KL divergence" in text
    assert "over the limit 0.00e+00" in text
    assert "onnx-fp32:" not in text
    worst = [line for line in text.splitlines() if "reference" in line and "variant" in line]
    assert len(worst) == 3
    assert "gguf-q8_0" in str(err.value.hint)
    assert tree(trained) == before
    assert [p.name for p in trained.parent.glob(".*")] == []


@pytest.mark.parametrize("targets", [[], ["query", "value"]], ids=["all", "two"])
def test_trained_parameters(targets: list[str], tmp_path: Path) -> None:
    """LoRA trains r (in + out) a linear layer, and the pooler and the head in full."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny.make_model(tmp_path, "bert")
    H, F, C, L, r = 32, 64, 3, 2, 4
    recipe = load_recipe(None, {"model": "m", "lora.rank": r, "lora.targets": targets})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted = add_adapters(model, recipe)
    layer = 2 * (H + H) if targets else 4 * (H + H) + 2 * (H + F)
    expected = L * r * layer + (H * H + H) + (H * C + C)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == expected


def test_adapters_on_a_layer_that_is_not_there(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny.make_model(tmp_path, "bert"))
    recipe = load_recipe(None, {"model": "m", "lora.targets": ["qeury"]})
    with pytest.raises(RecipeError, match=r"no linear layer 'qeury' \(did you mean 'query'\?\)"):
        add_adapters(model, recipe)


LONG = {"train.epochs": 12.0, "train.early_stop": 2, "targets": ["gguf:f32"]}


def long_recipe(keys: dict[str, Any], folder: Path) -> Recipe:
    paths = {"cache_dir": str(folder / "cache"), "output": str(folder / "b")}
    return load_recipe(None, {**keys, **LONG, **paths})


@pytest.fixture(scope="module")
def undisturbed(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that early stopping ends; its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    compile(long_recipe(keys, folder))
    return folder


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_training_goes_on_to_the_same_weights(
    keys: dict[str, Any], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    recipe = long_recipe(keys, tmp_path)
    kill_at_first_checkpoint(recipe, tmp_path)
    assert list((tmp_path / "cache" / "finetune").glob("[!.]*")) == []
    resumed: list[Any] = []
    train = Trainer.train

    def seen(self: Any, resume_from_checkpoint: Any = None, **more: Any) -> Any:
        resumed.append(Path(resume_from_checkpoint).name)
        return train(self, resume_from_checkpoint=resume_from_checkpoint, **more)

    monkeypatch.setattr(Trainer, "train", seen)
    compile(recipe)
    assert resumed
    assert resumed != ["checkpoint-999"]
    assert_same_training(tmp_path, undisturbed)


class Interrupting(Progress):
    """Ctrl-C at one step of the training."""

    def __init__(self, at_step: int) -> None:
        super().__init__("quiet")
        self.at_step = at_step

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        if total is not None and done == self.at_step:
            raise KeyboardInterrupt


def test_an_interrupted_training_stops_early_where_it_would_have(
    keys: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    n_epochs = len(history(undisturbed)["epochs"])
    assert 2 < n_epochs < 12
    recipe = long_recipe(keys, tmp_path)
    for epoch in (2, n_epochs):  # in the last one, the count of epochs without gain is not 0
        with pytest.raises(KeyboardInterrupt):
            compile(recipe, Interrupting(at_step=6 * (epoch - 1) + 3))
    compile(recipe)
    assert_same_training(tmp_path, undisturbed)


def history(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "cache").glob("finetune/[!.]*/history.json")
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_training(folder: Path, other: Path) -> None:
    assert history(folder)["epochs"] == history(other)["epochs"]
    a, b = merged_weights(folder), merged_weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def kill_at_first_checkpoint(recipe: Recipe, folder: Path) -> None:
    """Start the compile in a process, and kill that as soon as a checkpoint can be gone on from,
    leaving a half-written newer one, as a kill within writing would."""
    from edgelm.compiler.recipe import dump_recipe

    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["seed"] == 0
    command = [sys.executable, "-m", "edgelm", "compile", str(path), "-q"]
    pattern = f".*.partial/{CHECKPOINTS}/checkpoint-*/trainer_state.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while not (found := list((folder / "cache" / "finetune").glob(pattern))):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    half = found[0].parent.parent / "checkpoint-999"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")


def merged_weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    (path,) = (folder / "cache").glob("merge/[!.]*/model/model.safetensors")
    return load_file(path)
