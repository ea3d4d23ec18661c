"""Outliers moved into weights: the float answers stay, 8 bits lose less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import tiny
import tiny_decoders
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest, Quantization
from edgelm.targets.onnx.feeds import feeds
from edgelm.targets.onnx.lower import fused
from edgelm.targets.onnx.smooth import smooth
from edgelm.targets.onnx.store import serialize

TASK = Task("text-classification", ("card_lost", "refund", "other"))
TEXT = TextLimits(max_tokens=64)


def batch_of(model_dir: Path) -> TokenBatch:
    rows = AutoTokenizer.from_pretrained(model_dir)(tiny.CORPUS, padding=True, return_tensors="np")
    ids = rows["input_ids"].astype(np.int32)
    return TokenBatch(ids, rows["attention_mask"].sum(1).astype(np.int32), np.zeros_like(ids))


def answers(model: ir.Model, batch: TokenBatch) -> np.ndarray:
    session = ort.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    names = tuple(i.name for i in session.get_inputs())
    return np.asarray(session.run(None, feeds(names, batch))[0])


@pytest.mark.parametrize(
    ("family", "precision", "n"),
    # n: at least so many inputs; of a layer of BERT what attention is given and gives, and what the
    # feed-forward is given
    [("bert", "int8", 6), ("bert", "int4", 6), ("modernbert", "int8", 14)],
)
def test_float_answers_stay(family: str, precision: str, n: int, tmp_path: Path) -> None:
    model_dir = tiny.make_model(tmp_path / "hf", family)
    model = fused(LowerRequest(model_dir, TASK, TEXT, precision, tmp_path))
    batch = batch_of(model_dir)
    before = answers(model, batch)
    assert smooth(model, lambda: [batch], 0.5) >= n
    np.testing.assert_allclose(answers(model, batch), before, atol=2e-4)


@pytest.fixture(scope="module")
def with_outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT whose norms give two channels 40 times as large, and whose layers weigh them less."""
    folder = tiny.make_model(tmp_path_factory.mktemp("outliers") / "hf")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("LayerNorm.weight"):
            weight[[3, 17]] *= 40
        elif weight.shape in {(32, 32), (64, 32)} and ".attention.output." not in name:
            weight[:, [3, 17]] /= 40
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def lowered(model_dir: Path, folder: Path, precision: str, strength: float | None) -> np.ndarray:
    folder.mkdir()
    batch = batch_of(model_dir)
    request = LowerRequest(
        model_dir, TASK, TEXT, precision, folder, Quantization(smooth=strength), lambda: [batch]
    )
    made = get_target("onnx").lower(request)
    variant = Variant(
        "v", "onnx", precision, (FileEntry("model.onnx", "0" * 64, 1),), made.options, made.engine
    )
    session = get_target("onnx").open(folder, variant, TASK, EngineOptions(threads=1))
    return session.run(batch)


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_8_bits_lose_less_with_outliers(
    precision: str, with_outliers: Path, tmp_path: Path
) -> None:
    expected = lowered(with_outliers, tmp_path / "float", "fp32", None)
    plain, smoothed = (
        np.abs(lowered(with_outliers, tmp_path / str(s), precision, s) - expected).mean()
        for s in (None, 0.5)
    )
    assert smoothed < plain / 2


def test_nothing_to_smooth_is_said(tmp_path: Path) -> None:
    folder = tiny_decoders.make_embedder(tmp_path / "hf", num_hidden_layers=1)
    task = Task("feature-extraction", pooling="last", dimensions=64)
    out = tmp_path / "out"
    out.mkdir()
    request = LowerRequest(folder, task, TEXT, "int8", out, Quantization(smooth=0.5))
    with pytest.raises(ModelError, match="none of this model's linear layers"):
        get_target("onnx").lower(request)
