"""Decoders: weights stored in 16 bits, computed in float32.

ONNX Runtime has few 16-bit kernels for CPUs and would cast to and fro around each operator. So
only the stored weights are halved: a Cast behind each is folded away when the file is loaded, and
speed and memory are those of fp32. Every operator works with it, on every device.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelm.targets.onnx.fuse import array_of, constant, tidy

MIN_SIZE = 1024  # what is smaller, biases and norms stay float32: they weigh nothing
LARGEST = float(np.finfo(np.float16).max)
_ANGLES = ("cos_cache", "sin_cache")  # of rotary positions; not weights


def halve_weights(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT16) -> None:
    """Replace large float32 initializers by ones of `dtype` and a Cast, in place."""
    for value in list(model.graph.initializers.values()):
        halve(model.graph, value, dtype)
    tidy(model)


def halve(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT16
) -> ir.Node | None:
    """Use an initializer of `dtype` in place of this one where that is worth it: the Cast."""
    name, array = str(value.name), array_of(value)
    if array is None or array.dtype != np.float32 or array.ndim < 2 or array.size < MIN_SIZE:
        return None
    if name.startswith(_ANGLES) or (dtype == ir.DataType.FLOAT16 and np.abs(array).max() > LARGEST):
        return None
    small = constant(graph, f"{name}.{dtype.short_name()}", array.astype(dtype.numpy()))
    cast = ir.node("Cast", [small], {"to": ir.DataType.FLOAT})
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
    graph.insert_before(graph[0], cast)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    return cast
