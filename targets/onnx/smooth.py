"""Outliers moved from activations into weights (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).

One scale for a whole tensor leaves few levels to usual values where some channels are hundreds of
times as large. Channel k of what a linear layer is given is divided by

    s[k] = max |x[k]| ** strength / max |W[k]| ** (1 - strength)

and row k of its weights multiplied by that, which changes no float answer. The division costs
nothing where what gives the channel takes it along: a norm that only linear layers read, the value
half of attention, the product that a gate is multiplied with. A norm that a residual sum reads too
gets a product behind it, of linear layers alone. Behind other functions (GELU) nothing is moved.

Letters: K inputs and N outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelm.targets.onnx.fuse import array_of, constant, tidy
from edgelm.targets.onnx.quantize import LinearNode, linears
from edgelm.targets.onnx.ranges import Batches, channel_peaks

Floats = NDArray[np.float32]

_LEAST = 1e-5  # of a channel's divisor


def smooth(model: ir.Model, batches: Batches, strength: float) -> int:
    """Move outliers in place, by what `batches` show; how many inputs of linear layers were
    changed, 0 where nothing can take a division along. Raises ModelError when there is no batch."""
    graph = model.graph
    groups: dict[str, list[LinearNode]] = {}  # query, key and value share their input
    for linear in linears(graph):
        groups.setdefault(str(linear.x.name), []).append(linear)
    wanted = {name for name, group in groups.items() if _place(group) is not None}
    if not wanted:
        return 0
    peaks = channel_peaks(model, wanted, batches)
    for name in groups:
        if name in wanted:
            # anew: what a group divides are weights of the one before it
            group = [n for n in linears(graph) if n.x.name == name]
            _move(graph, group, _divisors(peaks[name], group, strength))
    tidy(model)
    return len(wanted)


def _divisors(peaks: Floats, group: Sequence[LinearNode], strength: float) -> Floats:
    """s (K,) of an input whose channels reach `peaks` (K,)."""
    rows = np.max([np.abs(linear.weight).max(axis=1) for linear in group], axis=0)
    used = (peaks > 0) & (rows > 0)
    safe_peaks, safe_rows = np.where(used, peaks, 1.0), np.where(used, rows, 1.0)
    divisors = safe_peaks**strength / safe_rows ** (1 - strength)
    return np.where(used, divisors.clip(min=_LEAST), 1.0).astype(np.float32)


def _move(graph: ir.Graph, group: Sequence[LinearNode], s: Floats) -> None:
    x, place = group[0].x, _place(group)
    made = x.producer()
    assert place is not None and made is not None
    for linear in group:
        _set_weight(graph, linear, linear.weight * s[:, None], "smooth")
    if isinstance(place, LinearNode):
        _divide_outputs(graph, place, s)
        if made.op_type == "MultiHeadAttention":  # which adds the biases itself
            _divide_end(graph, made, 3, s)
        return
    if place.op_type == "LayerNormalization" and _reads_all(group):
        for i in (1, 2):
            value = place.inputs[i] if i < len(place.inputs) else None
            array = array_of(value)
            if value is not None and array is not None:
                name = f"{x.name}.smooth.{i}"
                place.replace_input_with(i, constant(graph, name, array / s))
        return
    inverse = constant(graph, f"{x.name}.smooth", (1 / s).astype(np.float32))
    product = ir.node("Mul", [x, inverse])
    product.outputs[0].shape, product.outputs[0].type = x.shape, x.type
    product.outputs[0].name = f"{x.name}.smoothed"
    graph.insert_after(place, product)
    for linear in group:
        linear.product.replace_input_with(0, product.outputs[0])


def _place(group: Sequence[LinearNode]) -> ir.Node | LinearNode | None:
    """What can take the division along: a norm, or the layer whose last outputs are the channels
    one by one. None: nothing can."""
    made = group[0].x.producer()
    if made is None:
        return None
    before = made
    if made.op_type == "Gather" and made.inputs[0] is not None:  # of a text's first token
        before = made.inputs[0].producer()
    if before is not None and before.op_type == "LayerNormalization":
        return made
    if not _reads_all(group):
        return None
    if made.op_type == "Attention":
        return _layer_of(made)
    if made.op_type == "MultiHeadAttention":
        return _giver(made.inputs[2])
    if made.op_type == "Mul":  # act(a) * b, with a and b halves of one product
        return _giver(made.inputs[1]) or _giver(made.inputs[0])
    return None


def _reads_all(group: Sequence[LinearNode]) -> bool:
    """Whether nothing but these layers reads their input."""
    x = group[0].x
    products = {id(linear.product) for linear in group}
    return not x.is_graph_output() and all(id(use.node) in products for use in x.uses())


def _giver(value: ir.Value | None) -> LinearNode | None:
    """The layer whose last outputs are `value`, which is read once: all of them, or the last part
    that they are split into."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not _is_read_once(value):
        return None
    if node.op_type != "Split":
        return _layer_of(node)
    whole, axis = node.inputs[0], node.attributes["axis"].as_int()
    is_last = value is node.outputs[-1] and axis in (-1, len(value.shape or ()) - 1)
    made = whole.producer() if whole is not None and _is_read_once(whole) else None
    return _layer_of(made) if is_last and made is not None else None


def _is_read_once(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(tuple(value.uses())) == 1


def _layer_of(end: ir.Node) -> LinearNode | None:
    graph = end.graph
    assert isinstance(graph, ir.Graph)
    return next((n for n in linears(graph) if n.end is end), None)


def _divide_outputs(graph: ir.Graph, layer: LinearNode, s: Floats) -> None:
    """The last len(s) outputs of the layer, weights and bias."""
    weight = layer.weight.copy()
    weight[:, -len(s) :] /= s
    _set_weight(graph, layer, weight, "divided")
    if layer.bias is not None:
        at = next(i for i, value in enumerate(layer.end.inputs) if value is layer.bias)
        _divide_end(graph, layer.end, at, s)


def _divide_end(graph: ir.Graph, node: ir.Node, at: int, s: Floats) -> None:
    """The last len(s) values of a constant that the node reads, where there is one."""
    value = node.inputs[at] if at < len(node.inputs) else None
    array = array_of(value)
    if value is None or array is None:
        return
    changed = array.copy()
    changed[-len(s) :] /= s
    # named after the result: equal constants are stored once, and others may read this one
    node.replace_input_with(at, constant(graph, f"{node.outputs[0].name}.divided", changed))


def _set_weight(graph: ir.Graph, linear: LinearNode, weight: Floats, how: str) -> None:
    transposed = linear.product.attributes.get("transB")
    if transposed is not None and transposed.as_int():
        weight = weight.T
    value = constant(graph, f"{linear.name}.{how}", np.ascontiguousarray(weight))
    linear.product.replace_input_with(1, value)
