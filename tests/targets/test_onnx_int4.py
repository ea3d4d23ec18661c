"""4-bit weights of what answers whole texts, against the Hugging Face model with those weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest
from edgelm.targets.onnx.blockwise import quantize_blocks
from edgelm.targets.onnx.export import export
from edgelm.targets.onnx.half import MIN_SIZE
from edgelm.targets.onnx.quantize import MIN_TABLE_SIZE

TEXTS = [
    "i lost my card",
    "refund please",
    "where is the parcel and how do you reset a password",
    "a",
]
TASKS = [Task("text-classification", ("card_lost", "refund", "other")), Task("feature-extraction")]


def batch_of(model_dir: Path) -> TokenBatch:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = tokenizer(TEXTS, padding=True, return_tensors="np")
    ids = rows["input_ids"].astype(np.int32)
    return TokenBatch(ids, rows["attention_mask"].sum(1).astype(np.int32), np.zeros_like(ids))


def restored(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """What 4 or 8 bits in blocks, with scales of 16 bits, leave of a matrix (N, K)."""
    q, scale = quantize_blocks(weight, bits)
    if bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
    if scale.numel() >= MIN_SIZE:
        scale = scale.half().float()
    return ((q.float() - 2 ** (bits - 1)) * scale[..., None]).flatten(1)[:, : weight.shape[1]]


def reference(model_dir: Path, task: Task, batch: TokenBatch) -> np.ndarray:
    """Logits or mean vectors of the Hugging Face model with the rounded weights."""
    auto: Any = (
        AutoModel if task.kind == "feature-extraction" else AutoModelForSequenceClassification
    )
    model = auto.from_pretrained(model_dir, attn_implementation="eager").eval()
    body = set(model.base_model.modules())
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear):
            is_head = module not in body or "pooler" in name
            weight.data = restored(weight.data, 8 if is_head else 4)
        elif isinstance(module, torch.nn.Embedding) and weight.numel() >= MIN_TABLE_SIZE:
            weight.data = restored(weight.data, 4)
        elif isinstance(module, torch.nn.Embedding) and weight.numel() >= MIN_SIZE:
            weight.data = weight.data.half().float()
    mask = torch.arange(batch.input_ids.shape[1]) < torch.tensor(batch.lengths)[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(batch.input_ids).long(), attention_mask=mask.long())
    if task.kind == "text-classification":
        return out.logits.numpy()
    rows = zip(out.last_hidden_state.numpy(), batch.lengths, strict=True)
    return np.stack([row[:n].mean(0) for row, n in rows])


def lowered(model_dir: Path, task: Task, folder: Path) -> tuple[np.ndarray, onnx.GraphProto]:
    """What the engine answers, and the file's graph."""
    folder.mkdir()
    request = LowerRequest(model_dir, task, TextLimits(max_tokens=64), "int4", folder)
    made = get_target("onnx").lower(request)
    assert made.files == ("model.onnx",)
    files = (FileEntry("model.onnx", "0" * 64, 1),)
    variant = Variant("v", "onnx", "int4", files, made.options, made.engine)
    session = get_target("onnx").open(folder, variant, task, EngineOptions(threads=1))
    return session.run(batch_of(model_dir)), onnx.load(folder / "model.onnx").graph


@pytest.mark.parametrize(
    "task", [TASKS[0], pytest.param(TASKS[1], marks=pytest.mark.slow)], ids=lambda task: task.kind
)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_are_those_of_the_rounded_weights(
    family: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = tiny.make_model(tmp_path / "hf", family, labels=task.labels or None)
    exported = export(model_dir, task, type_ids=False)
    monkeypatch.setattr("edgelm.targets.onnx.lower.export", lambda *a, **k: exported.clone())
    expected = reference(model_dir, task, batch_of(model_dir))
    found, graph = lowered(model_dir, task, tmp_path / "onnx")
    # activations of 8 bits, in random layers that damp no error
    assert np.abs(found - expected).mean() < 0.06 * expected.std()
    monkeypatch.setattr("edgelm.targets.onnx.blockwise.INT8_ACTIVATIONS", 0)
    found, _ = lowered(model_dir, task, tmp_path / "float")
    np.testing.assert_allclose(found, expected, atol=2e-3)

    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulNBits") >= 2 * 4
    V = AutoConfig.from_pretrained(model_dir).vocab_size
    assert operators.count("GatherBlockQuantized") == (V * 32 >= MIN_TABLE_SIZE)
    floats = [i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    assert all(np.prod(i.dims) < MIN_SIZE for i in floats)
