"""What cannot end well is refused before any training."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import pytest
import tiny
from tiny_data import labelled_rows, write_csv

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.hf import load_model, versions
from edgelm.runtime.manifest import Task, read_manifest
from edgelm.targets.base import missing

LABELS = ("card_lost", "refund", "other")


def test_weights_that_are_not_in_the_files_are_never_made_up(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tiny.make_model(tmp_path / "model")
    task = Task("text-classification", LABELS)
    file = folder / "model.safetensors"
    weights = safetensors.load_file(file)
    headless = {k: v for k, v in weights.items() if not k.startswith("classifier.")}
    safetensors.save_file(headless, file, {"format": "pt"})
    load_model(folder, task, new_head=True)
    with pytest.raises(edgelm.ModelError, match="2 of the model's weights are not in its files"):
        load_model(folder, task, new_head=False)
    gap = {k: v for k, v in weights.items() if "layer.1.attention.self.query" not in k}
    safetensors.save_file(gap, file, {"format": "pt"})
    with pytest.raises(edgelm.ModelError, match=r"layer\.1\.attention\.self\.query"):
        load_model(folder, task, new_head=True)


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"onnxruntime-gpu": "1.32.0"}

    def version(name: str) -> str:
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions("onnxruntime") == {"onnxruntime": "1.32.0"}
    with pytest.raises(edgelm.MissingExtra, match="llama-cpp-python") as err:
        versions("llama-cpp-python")
    assert "edgelm[gguf]" in str(err.value.hint)
    assert "edgelm[compile]" in str(missing("onnxruntime-genai", (3, 11)).hint)
    too_old = missing("onnxruntime-genai", (3, 10))
    assert too_old.message.endswith("no release for Python 3.10; it needs Python 3.11 or newer")
    assert "pip" not in str(too_old.hint)


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({"targets": ["onnx:int8-static"]}, edgelm.RecipeError, "needs training data"),
        (
            {"targets": ["gguf:q8_0"], "data.train": "FILE", "quantize.smooth": 0.5},
            edgelm.RecipeError,
            "is for the targets onnx:int8 and onnx:int8-static",
        ),
        ({"output": "FILE/x.edgelm"}, edgelm.StorageError, "a part of the path is"),
        ({"output": "n" * 300}, edgelm.StorageError, "the name is too long"),
    ],
)
def test_refused_at_once(keys: dict, error: type[Exception], says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    keys = {
        k: v.replace("FILE", str(tmp_path / "file")) if isinstance(v, str) else v
        for k, v in keys.items()
    }
    with pytest.raises(error, match=says):
        compile(load_recipe(None, {"model": str(tmp_path / "none"), **keys}))


def test_a_linked_output_stays_a_link(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "eval.csv", labelled_rows())
    (tmp_path / "v1").mkdir()
    link = tmp_path / "current.edgelm"
    link.symlink_to("v1")
    keys = {
        "model": str(tiny.make_model(tmp_path / "model")),
        "data.eval": str(data),
        "train.method": "none",
        "targets": ["gguf:f32"],
        "output": str(link),
        "cache_dir": str(tmp_path / "cache"),
    }
    left = tmp_path / ".v1.new-killed"
    for _ in range(2):
        left.mkdir()  # as a killed compile leaves it
        compile(load_recipe(None, keys))
        assert link.is_symlink()
        assert read_manifest(link).variants[0].name == "gguf-f32"
        assert not left.exists()
    shutil.rmtree(tmp_path / "cache")
