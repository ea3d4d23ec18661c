"""8-bit weights; activations are quantized while running, one scale and zero point a tensor.

Linear layers become DynamicQuantizeLinear + MatMulInteger, which ONNX Runtime joins when it
loads the file; attention with its wide product becomes QAttention. MatMulNBits with 8 bits (a
scale for each block of a row) is more exact, but was measured 1.6 to 1.7 times slower on a VNNI
CPU.

Products of unsigned activations and signed weights are summed in pairs of 16 bits on CPUs without
VNNI: 2 x 255 x 127 overflows there, 2 x 255 x 63 = 32130 does not. `reduce_range` keeps the
weights in 7 bits, so that every CPU gives the same answer.

Letters: K inputs and N outputs of a linear layer, V rows of an embedding table, H its width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelm.targets.onnx.fuse import MICROSOFT, array_of, constant, replace, tidy

MIN_TABLE_SIZE = 4096  # smaller tables stay float32: they weigh nothing


@dataclass(frozen=True)
class LinearNode:
    """A MatMul or Gemm node with constant weights, the Add of a bias behind it included; or an
    Attention node, whose product it is then."""

    product: ir.Node
    end: ir.Node  # gives the result: the product, or the Add
    weight: NDArray[np.float32]  # (K, N)
    bias: ir.Value | None  # (N,)
    name: str

    @property
    def x(self) -> ir.Value:
        """What is multiplied; another value once the node that gave it was replaced."""
        value = self.product.inputs[0]
        assert value is not None
        return value


def quantize_dynamic(model: ir.Model, *, reduce_range: bool) -> None:
    """Replace every linear layer and embedding table in place."""
    quantize_tables(model)
    quantized: Quantized = {}
    for linear in list(linears(model.graph)):
        quantize_linear(model.graph, linear, quantized, reduce_range=reduce_range)
    tidy(model)


Quantized = dict[ir.Value, list[ir.Value]]  # query, key and value share their input


def quantize_linear(
    graph: ir.Graph, linear: LinearNode, quantized: Quantized, *, reduce_range: bool
) -> None:
    """Replace one linear layer in place. `quantized` are inputs that earlier ones quantized."""
    new: list[ir.Node] = []
    if linear.x not in quantized:
        node = ir.node("DynamicQuantizeLinear", [linear.x], num_outputs=3)
        quantized[linear.x] = list(node.outputs)
        new.append(node)
    xq, x_scale, x_zero = quantized[linear.x]
    q, scale = quantize_columns(linear.weight, reduce_range=reduce_range)
    weight = constant(graph, f"{linear.name}.int8", q)
    column_scale = constant(graph, f"{linear.name}.scale", scale)
    if linear.end.op_type == "Attention":
        new.append(q_attention(linear, xq, x_scale, x_zero, weight, column_scale))
        replace(graph, linear.end, *new)
        return
    product = ir.node("MatMulInteger", [xq, weight, x_zero])
    cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
    scales = ir.node("Mul", [x_scale, column_scale])
    y = ir.node("Mul", [cast.outputs[0], scales.outputs[0]])
    new += [product, cast, scales, y]
    if linear.bias is not None:
        new.append(ir.node("Add", [y.outputs[0], linear.bias]))
    replace(graph, linear.end, *new)


def q_attention(
    linear: LinearNode,
    xq: ir.Value,
    x_scale: ir.Value,
    x_zero: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
) -> ir.Node:
    """The 8-bit form of an Attention node; softmax and what follows stay float32."""
    attributes = [linear.end.attributes[name] for name in ("num_heads", "mask_filter_value")]
    mask = linear.end.inputs[3]
    values = [xq, weight, linear.bias, x_scale, scale, mask, x_zero, None]
    return ir.Node(MICROSOFT, "QAttention", values, attributes)


def quantize_tables(model: ir.Model) -> None:
    """Embedding tables to int8 with a scale for each row."""
    for gather, table in tables(model.graph):
        quantize_table(model.graph, gather, table)
    tidy(model)


def quantize_table(graph: ir.Graph, gather: ir.Node, table: NDArray[np.float32]) -> None:
    """One table in place: Gather of rows, Gather of scales."""
    assert gather.inputs[0] is not None
    name, ids = gather.inputs[0].name, gather.inputs[1]
    q, scale = quantize_columns(table.T, reduce_range=False)
    rows = ir.node("Gather", [constant(graph, f"{name}.int8", q.T.copy()), ids])
    scales = ir.node("Gather", [constant(graph, f"{name}.scale", scale[:, None]), ids])
    cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    product = ir.node("Mul", [cast.outputs[0], scales.outputs[0]])
    replace(graph, gather, rows, scales, cast, product)


def tables(graph: ir.Graph) -> list[tuple[ir.Node, NDArray[np.float32]]]:
    """The Gather of each large embedding table, and the table (V, H)."""
    found: list[tuple[ir.Node, NDArray[np.float32]]] = []
    for node in graph:
        table = array_of(node.inputs[0]) if node.op_type == "Gather" else None
        is_table = table is not None and table.ndim == 2 and table.dtype == np.float32
        if table is None or not is_table or table.size < MIN_TABLE_SIZE:
            continue
        if "axis" in node.attributes and node.attributes["axis"].as_int() != 0:
            continue
        found.append((node, table))
    return found


def quantize_columns(
    weight: NDArray[np.float32], *, reduce_range: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """weight (K, N) -> int8 (K, N) and float32 scale (N,), symmetric: weight ~ int8 * scale.

    Of a float32's 24 significant bits a scale has 16, so that its products with int8 are exact, and
    where a column is made of such products they are found again as they are."""
    limit = levels_of(reduce_range=reduce_range)
    scale = shorten((np.abs(weight).max(axis=0) / limit).astype(np.float32), 16)
    scale[scale == 0] = 1.0
    return np.rint(weight / scale).clip(-limit, limit).astype(np.int8), scale


def levels_of(*, reduce_range: bool) -> int:
    """The largest level of a weight in 8 bits, and the least with its sign changed."""
    return 63 if reduce_range else 127


def shorten(scale: NDArray[np.float32], n_bits: int) -> NDArray[np.float32]:
    """Rounded to so many significant bits, of 24."""
    unit = np.int32(1 << (24 - n_bits))
    return ((scale.view(np.int32) + unit // 2) & -unit).view(np.float32)


def linears(graph: ir.Graph) -> Iterator[LinearNode]:
    """Every product with constant weights, in order."""
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm", "Attention"):
            continue
        stored = node.inputs[1]
        weight = array_of(stored)
        if stored is None or weight is None or weight.ndim != 2:
            continue
        attributes = {name: a.value for name, a in node.attributes.items()}
        if attributes.get("transA") or {
            attributes.get("alpha", 1.0),
            attributes.get("beta", 1.0),
        } != {1.0}:
            continue
        weight = weight.T if attributes.get("transB") else weight
        end, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type == "MatMul":
            end, bias = _added_bias(node, weight.shape[1])
        yield LinearNode(node, end, np.ascontiguousarray(weight), bias, str(stored.name))


def _added_bias(node: ir.Node, width: int) -> tuple[ir.Node, ir.Value | None]:
    """The Add of a constant (width,) that alone uses the product, and the constant."""
    uses = tuple(node.outputs[0].uses())
    add = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    if add is not None and add.op_type == "Add":
        other = add.inputs[1 - uses[0].idx]
        array = array_of(other)
        if array is not None and array.shape == (width,):
            return add, other
    return node, None
