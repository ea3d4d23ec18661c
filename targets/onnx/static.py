"""8-bit weights and activations with ranges fixed at compile time, in the QDQ format.

Only the inputs of linear layers are quantized: they hold all the arithmetic worth saving, while
softmax, norms and residual sums lose accuracy in 8 bits. With the ranges fixed a text's answer
does not depend on the rest of its batch, and no pass is spent on finding the range.

Letters: K inputs and N outputs of a linear layer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelm.targets.onnx.fuse import constant, replace, tidy
from edgelm.targets.onnx.quantize import linears, quantize_columns, quantize_tables
from edgelm.targets.onnx.ranges import Batches, Method, calibrate


def quantize_static(
    model: ir.Model, batches: Batches, *, method: Method, reduce_range: bool
) -> None:
    """Replace every linear layer and embedding table in place. Raises ModelError."""
    graph = model.graph
    found = list(linears(graph))
    ranges = calibrate(model, {str(n.x.name) for n in found}, batches, method)
    quantize_tables(model)
    inputs: dict[str, ir.Value] = {}  # query, key and value share their input
    for linear in found:
        new: list[ir.Node] = []
        name = str(linear.x.name)
        if name not in inputs:
            scale, zero = unsigned(*ranges[name])
            parameters = [
                constant(graph, f"{name}.scale", np.array(scale, np.float32)),
                constant(graph, f"{name}.zero", np.array(zero, np.uint8)),
            ]
            q = ir.node("QuantizeLinear", [linear.x, *parameters])
            dq = ir.node("DequantizeLinear", [q.outputs[0], *parameters])
            inputs[name] = dq.outputs[0]
            new += [q, dq]
        q, scales = quantize_columns(linear.weight, reduce_range=reduce_range)
        weight = ir.node(
            "DequantizeLinear",
            [
                constant(graph, f"{linear.name}.int8", q),
                constant(graph, f"{linear.name}.scale", scales),
                constant(graph, f"{linear.name}.zero", np.zeros(len(scales), np.int8)),
            ],
            {"axis": 1},
        )
        product = ir.node("MatMul", [inputs[name], weight.outputs[0]])
        new += [weight, product]
        if linear.bias is not None:
            new.append(ir.node("Add", [product.outputs[0], linear.bias]))
        replace(graph, linear.node, *new)
    tidy(model)


def unsigned(low: float, high: float) -> tuple[float, int]:
    """The uint8 scale and zero point of [low, high], which holds zero."""
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale)
