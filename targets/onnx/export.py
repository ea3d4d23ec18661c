"""Hugging Face model directory -> ONNX model in memory, pooled and with dynamic axes.

Letters: B batch, T tokens, H hidden size, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Pooling, Task
from edgelm.targets.encoders import load_narrow
from edgelm.targets.onnx import attention

OPSET = 21

log = logging.getLogger(__name__)


class Pooled(torch.nn.Module):
    """The model as the file states it: ids and mask in, one row per text out."""

    def __init__(self, model: torch.nn.Module, pooling: Pooling | None) -> None:
        super().__init__()
        self.model = model
        self.pooling: Pooling | None = pooling

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """int64 (B, T) each -> float32 (B, C) logits, or (B, H) pooled vectors."""
        inputs: dict[str, torch.Tensor] = dict(input_ids=input_ids, attention_mask=attention_mask)
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        output = self.model(**inputs)
        if self.pooling is None:
            return output.logits
        return pool(output.last_hidden_state, attention_mask, self.pooling)


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """hidden (B, T, H), attention_mask (B, T) with padding on the right -> (B, H)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = attention_mask.sum(1, keepdim=True) - 1  # (B, 1)
        return hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[-1]))[:, 0]
    weight = attention_mask.to(hidden.dtype)  # (B, T)
    # As a product of matrices: one pass over `hidden`, no copy of it.
    return (weight[:, None] @ hidden)[:, 0] / weight.sum(1, keepdim=True)


def load(model_dir: Path, task: Task, implementation: str) -> torch.nn.Module:
    """The model in float32, ready to predict. Raises ModelError."""
    auto = AutoModel if task.kind == "feature-extraction" else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
        model = load_narrow(auto, model_dir, config, implementation) or auto.from_pretrained(
            model_dir,
            attn_implementation=implementation,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as err:
        raise ModelError(f"{model_dir}: transformers cannot load it: {err}") from err
    return model.eval()


def export(model_dir: Path, task: Task, *, type_ids: bool) -> ir.Model:
    """Export with one attention operator a layer where the family allows, else as it is."""
    attention.register()
    last: Exception | None = None
    for implementation in (attention.NAME, "sdpa", "eager"):
        try:
            return _export(load(model_dir, task, implementation), task, type_ids)
        except (attention.Inexpressible, ModelError, torch.onnx.errors.OnnxExporterError) as err:
            log.info("%s: export with %s attention failed: %s", model_dir, implementation, err)
            last = err
    if isinstance(last, ModelError):
        raise last
    raise ModelError(f"{model_dir}: cannot be exported to ONNX: {last}") from last


def _export(model: torch.nn.Module, task: Task, type_ids: bool) -> ir.Model:
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if type_ids else [])]
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    # Sizes that differ from each other and from 1, so that no axis is taken for a constant.
    example = torch.ones(2, 7, dtype=torch.int64)
    embeds = task.kind == "feature-extraction"
    with _quiet():
        program = torch.onnx.export(
            Pooled(model, task.pooling if embeds else None).eval(),
            tuple(example.clone() for _ in names),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["edgelm_rows"],
            dynamic_shapes=tuple(dict(axes) for _ in names),
            verbose=False,
        )
    assert program is not None
    _name_output(program.model.graph, "embedding" if embeds else "logits")
    return program.model


def _name_output(graph: ir.Graph, name: str) -> None:
    """The exporter names values after torch's functions, `embedding` among them."""
    for node in graph:
        for value in node.outputs:
            if value.name == name:
                value.name = f"{name}.inner"
    graph.outputs[0].name = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings about its own parts from the user."""
    loggers: list[Any] = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
