"""8-bit weights and activations with ranges fixed at compile time.

Only the inputs of linear layers are quantized: they hold all the arithmetic worth saving, while
softmax, norms and residual sums lose accuracy in 8 bits. With the ranges fixed a text's answer
does not depend on the rest of its batch, and no pass is spent on finding the range. The product
is ONNX Runtime's own operator, which takes the bias along; the QDQ form of the same costs a pass
over the result for it.

Letters: K inputs and N outputs of a linear layer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelm.targets.onnx.fuse import MICROSOFT, constant, replace, tidy
from edgelm.targets.onnx.quantize import linears, q_attention, quantize_columns, quantize_tables
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
        step, zero = unsigned(*ranges[name])
        parameters = (
            constant(graph, f"{name}.scale", np.array(step, np.float32)),
            constant(graph, f"{name}.zero", np.array(zero, np.uint8)),
        )
        if name not in inputs:
            quantize = ir.node("QuantizeLinear", [linear.x, *parameters])
            inputs[name] = quantize.outputs[0]
            new.append(quantize)
        q, scales = quantize_columns(linear.weight, reduce_range=reduce_range)
        weight = constant(graph, f"{linear.name}.int8", q)
        scale = constant(graph, f"{linear.name}.scale", scales)
        xq, (x_scale, x_zero) = inputs[name], parameters
        if linear.end.op_type == "Attention":
            new.append(q_attention(linear, xq, x_scale, x_zero, weight, scale))
        else:
            values = [xq, weight, x_scale, scale, x_zero, None, linear.bias]
            new.append(ir.Node(MICROSOFT, "MatMulIntegerToFloat", values))
        replace(graph, linear.end, *new)
    tidy(model)


def unsigned(low: float, high: float) -> tuple[float, int]:
    """The uint8 scale and zero point of [low, high], which holds zero."""
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale)
