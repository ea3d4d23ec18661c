"""ONNX model in memory -> checked files on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

# A protobuf message ends at 2 GiB; the rest is for the graph itself.
MAX_INLINE_BYTES = 2**31 - 64 * 2**20


def store(model: ir.Model, folder: Path) -> tuple[str, ...]:
    """Write `model.onnx`, with its weights beside it when they exceed one file's limit."""
    common.ClearMetadataAndDocStringPass()(model)
    tensors = [v.const_value for v in model.graph.initializers.values()]
    n_bytes = sum(t.nbytes for t in tensors if t is not None)
    external = DATA_FILE if n_bytes > MAX_INLINE_BYTES else None
    ir.save(model, folder / FILE, external_data=external)
    onnx.checker.check_model(str(folder / FILE))
    return (FILE,) if external is None else (FILE, DATA_FILE)


def serialize(model: ir.Model) -> bytes:
    """The model as one file's bytes, for a session that needs no file."""
    return ir.to_proto(model).SerializeToString()
