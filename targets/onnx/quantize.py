"""8-bit weights, activations quantized while running."""

from __future__ import annotations

import onnx_ir as ir


def quantize_dynamic(model: ir.Model, *, reduce_range: bool) -> None:
    raise NotImplementedError
