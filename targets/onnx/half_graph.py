"""An encoder's graph in half floats, which GPUs compute as such.

ONNX Runtime has few 16-bit kernels for x86 CPUs. There it runs such a graph in float32: the weights
are widened when the file is loaded, and no casts stay between the operators. So on those CPUs only
the weights' rounding shows; what comes of half floats in between shows on a GPU.

Float32 stay the angles of rotary positions, and all behind the last norm (pooling sums up to as
many values as there are tokens), whose large weights are stored in halves.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgelm.targets.onnx.fuse import MICROSOFT, array_of, constant, replace, tidy
from edgelm.targets.onnx.half import LARGEST, halve

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_NORMS = ("LayerNormalization", "SkipLayerNormalization", "RMSNormalization")
_ANGLES = ("Cos", "Sin")


def halve_graph(model: ir.Model) -> None:
    """Compute in half floats, in place; inputs and outputs keep their types."""
    graph = model.graph
    _name_gelus(graph)
    wide = _ancestors(graph.outputs, stop=_NORMS)
    wide |= _ancestors(v for n in graph if n.op_type in _ANGLES for v in n.outputs)
    wide_values = {value for node in wide for value in node.outputs}
    nodes = list(graph)  # without the casts that are put between them
    for node in nodes:
        _retype_inputs(graph, node, wide_values, is_wide=node in wide)
    for node in nodes:
        if node not in wide:
            _retype_outputs(node)
    _keep_outputs(graph)
    tidy(model)


def _ancestors(values: Iterable[ir.Value | None], stop: tuple[str, ...] = ()) -> set[ir.Node]:
    """The nodes that make the values, back to those of a type in `stop`, which are left out."""
    found: set[ir.Node] = set()
    waiting = [v.producer() for v in values if v is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in found or node.op_type in stop:
            continue
        found.add(node)
        waiting += [v.producer() for v in node.inputs if v is not None]
    return found


def _name_gelus(graph: ir.Graph) -> None:
    """ONNX's Gelu is a function, of which a CPU without it in halves runs the dozen operators."""
    for node in list(graph):
        exact = node.attributes.get("approximate")
        if node.op_type == "Gelu" and not node.domain and (exact is None or exact.value == "none"):
            replace(graph, node, ir.node("Gelu", list(node.inputs), domain=MICROSOFT))


def _retype_inputs(
    graph: ir.Graph, node: ir.Node, wide_values: set[ir.Value], *, is_wide: bool
) -> None:
    """Give the node its float inputs in its own type."""
    for i, value in enumerate(node.inputs):
        if value is None or value.dtype != _FLOAT or value in graph.inputs:
            continue
        if array_of(value) is not None and value.producer() is None:
            if not is_wide:
                node.replace_input_with(i, _halved(graph, value))
            elif (cast := halve(graph, value)) is not None:
                wide_values.add(cast.outputs[0])
            continue
        if (value in wide_values) != is_wide:
            node.replace_input_with(i, _cast(graph, value, _FLOAT if is_wide else _HALF, node))


def _halved(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The constant in halves; the least of masks are as small as halves are."""
    array = array_of(value)
    assert array is not None
    finite = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
    return constant(graph, f"{value.name}.float16", finite.astype(np.float16))


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": dtype})
    cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, dtype
    graph.insert_before(user, cast)
    return cast.outputs[0]


def _retype_outputs(node: ir.Node) -> None:
    """A node of halves: what it states as float32 is half now."""
    to = node.attributes.get("to")
    if node.op_type == "Cast" and to is not None and to.value == _FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", _HALF)
    held = node.attributes.get("value")
    if node.op_type in ("Constant", "ConstantOfShape") and held is not None:
        tensor = held.as_tensor()
        if tensor.dtype == _FLOAT:
            halves = ir.tensor(np.clip(tensor.numpy(), -LARGEST, LARGEST).astype(np.float16))
            node.attributes["value"] = ir.AttrTensor("value", halves)
    for value in node.outputs:
        if value.dtype == _FLOAT:
            value.dtype = _HALF


def _keep_outputs(graph: ir.Graph) -> None:
    """A model that ends in a norm gives float32 all the same."""
    for i, value in enumerate(graph.outputs):
        if value.dtype != _HALF:
            continue
        name, value.name = value.name, f"{value.name}.half"
        cast = ir.node("Cast", [value], {"to": _FLOAT})
        cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
        cast.outputs[0].dtype = _FLOAT
        graph.append(cast)
        graph.outputs[i] = cast.outputs[0]
