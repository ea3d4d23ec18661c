"""Weights of linear layers in 4 or 8 bits, with a scale for each block of 32 in a row.

    weight[n, k] ~ scale[n, k // 32] * (q[n, k] - zero),   zero 8 or 128

A product becomes MatMulNBits, the Gather of embeddings GatherBlockQuantized. Where the table of
embeddings is the transposed weight of the product with the vocabulary, as in most small decoders,
both read the same bytes.

The usual scale, largest / 7, is far from the best one: with 4 bits each block's scale is searched
for the least error, errors of large weights counting more, as llama.cpp does. Such a scale has 11
significant bits. So values that lie on a grid, scale * level with 11 bits and a level of at least
+-PEAK in each block, are found again exactly.

Letters: N outputs and K inputs of a linear layer, V rows and H columns of a table, G blocks in a
row.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.onnx.fuse import MICROSOFT, array_of, constant, replace, tidy
from edgelm.targets.onnx.half import halve_weights
from edgelm.targets.onnx.quantize import LinearNode, linears, shorten, tables

BLOCK = 32
INT8_ACTIVATIONS = 4  # the operator's accuracy level: activations in 8 bits, as llama.cpp does
HEAD = "lm_head.MatMul.weight"

PEAK = 7
_SCALE_BITS = 11  # significant ones, as in float16
_CHUNK_ROWS = 4096
_STEPS = tuple(0.1 * step for step in range(-9, 10))
_LAYER = re.compile(r"layers\.(\d+)\.(attn\.(?:qkv|v)_proj|mlp\.down_proj)\.")


def quantize_blocks(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) -> bytes (N, G, 32 * bits / 8) and scales (N, G), both for MatMulNBits."""
    N, K = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -K % BLOCK))
    blocks = padded.reshape(N, -1, BLOCK).contiguous()  # sums depend on the layout
    parts = [_quantize(rows, bits) for rows in blocks.split(_CHUNK_ROWS)]
    q, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    if bits == 4:
        q = q[..., 0::2] | q[..., 1::2] << 4
    return q, scale


def dequantize_blocks(q: torch.Tensor, scale: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """What `quantize_blocks` gave -> float32 (N, width)."""
    if bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
    return ((q.float() - 2 ** (bits - 1)) * scale[..., None]).flatten(1)[:, :width]


def _quantize(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, G, 32) -> uint8 (N, G, 32) with the zero in the middle, and scales (N, G)."""
    zero = 2 ** (bits - 1)
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))  # with its sign
    largest = torch.where(largest == 0, 1.0, largest)
    best_q = torch.round(x * (-zero / largest)).clamp(-zero, zero - 1)
    best_scale = largest / -zero
    if bits == 4:
        weight = x * x
        best = torch.full_like(best_scale, torch.inf)
        for step in _STEPS:
            q = torch.round(x * (-(zero + step) / largest)).clamp(-zero, zero - 1)
            dot = (weight * x * q).sum(-1, keepdim=True)
            square = (weight * q * q).sum(-1, keepdim=True)
            found = torch.where(square > 0, dot / square, best_scale)
            scale = torch.from_numpy(shorten(found.numpy(), _SCALE_BITS))
            error = (weight * (x - scale * q).square()).sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            best_q = torch.where(better, q, best_q)
            best_scale = torch.where(better, scale, best_scale)
    return (best_q + zero).to(torch.uint8), best_scale[..., 0]


def quantize_linears(model: ir.Model, bits: int) -> None:
    """Every product of a decoder in place; with 4 bits the most sensitive ones get 8.
    Raises ModelError."""
    for node, chosen in choose_bits(model.graph, bits):
        _to_blocks(model.graph, node, chosen)
    tidy(model)


def choose_bits(graph: ir.Graph, bits: int) -> list[tuple[ir.Node, int]]:
    """The products with constant weights, and how many bits these get. Raises ModelError."""
    products = _products(graph)
    if not products:
        raise ModelError("the built model has no linear layer to quantize")
    layers = [int(m[1]) for n in products if (m := re.search(r"layers\.(\d+)\.", _name(n)))]
    n_layers = 1 + max(layers, default=0)
    return [
        (node, 8 if bits == 8 or _is_sensitive(_name(node), n_layers) else 4) for node in products
    ]


def weight_of(node: ir.Node) -> torch.Tensor:
    """A product's weights (N, K)."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    return torch.tensor(weight.const_value.numpy()).T


def quantize_gated(model: ir.Model) -> None:
    """The products behind a gate, (act(x A) * x B) C, in place in 8 bits; a graph may have none.

    In decoders single values there are hundreds to thousands of times as large as the others, of
    which one scale for a whole tensor leaves little; a scale for each block keeps them (vectors of
    SmolLM2-135M: mean cosine 0.994, with one scale 0.961)."""
    for node in gated(model.graph):
        _to_blocks(model.graph, node, 8)
    tidy(model)


def gated(graph: ir.Graph) -> list[ir.Node]:
    """Those products."""
    found: list[ir.Node] = []
    for node in _products(graph):
        made = node.inputs[0].producer() if node.inputs[0] is not None else None
        if made is None or made.op_type != "Mul":
            continue
        if all(array_of(value) is None for value in made.inputs):
            found.append(node)
    return found


def bits_of(linear: LinearNode) -> int:
    """Of a product of what answers whole texts: heads, which work on one row (B, K) a text, weigh
    little and get 8."""
    return 8 if linear.x.shape is not None and len(linear.x.shape) == 2 else 4


def quantize_whole_texts(model: ir.Model) -> None:
    """What answers whole texts: every product and embedding table in place in 4 bits, with scales
    of 16 bits; heads in 8."""
    graph = model.graph
    for linear in list(linears(graph)):
        linear_to_blocks(graph, linear, bits_of(linear))
    for gather, table in tables(graph):
        table_to_blocks(graph, gather, table, 4)
    tidy(model)
    halve_weights(model)


def linear_to_blocks(graph: ir.Graph, linear: LinearNode, bits: int) -> ir.Value:
    """One linear layer in place. Gives its scales."""
    product = _product(graph, linear.x, linear.name, torch.from_numpy(linear.weight), bits)
    new = [product]
    if linear.bias is not None:
        new.append(ir.node("Add", [product.outputs[0], linear.bias]))
    replace(graph, linear.end, *new)
    assert product.inputs[2] is not None
    return product.inputs[2]


def table_to_blocks(
    graph: ir.Graph, gather: ir.Node, table: NDArray[np.float32], bits: int
) -> ir.Value:
    """One embedding table in place. Gives its scales."""
    assert gather.inputs[0] is not None
    name = str(gather.inputs[0].name)
    q, scale = _stored(graph, name, torch.from_numpy(table), bits)
    new = _gather(graph, name, q, scale, gather.inputs[1], table.shape[1], bits)
    replace(graph, gather, *new)
    return scale


def _products(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if n.op_type == "MatMul" and _is_weight(n.inputs[1])]


def _to_blocks(graph: ir.Graph, node: ir.Node, bits: int) -> None:
    """A product's weights (K, N) in blocks along K."""
    name, weight = _name(node), node.inputs[1]
    assert weight is not None
    product = _product(graph, node.inputs[0], name, weight_of(node).T, bits)
    if name == HEAD:
        _share(graph, weight, product, bits)
    replace(graph, node, product)


def _product(
    graph: ir.Graph, x: ir.Value | None, name: str, weight: torch.Tensor, bits: int
) -> ir.Node:
    """x @ weight, with weight (K, N)."""
    K, N = weight.shape
    q, scale = _stored(graph, name, weight.T, bits)
    attributes = {"K": K, "N": N, "bits": bits, "block_size": BLOCK}
    return ir.node(
        "MatMulNBits",
        [x, q, scale],
        {**attributes, "accuracy_level": INT8_ACTIVATIONS},
        domain=MICROSOFT,
    )


def _stored(graph: ir.Graph, name: str, rows: torch.Tensor, bits: int) -> tuple[ir.Value, ir.Value]:
    """Constants of `rows` in blocks: bytes (N, G, 32 * bits / 8) and scales (N, G)."""
    q, scale = quantize_blocks(rows, bits)
    stored = constant(graph, f"{name}.q{bits}", q.numpy())
    return stored, constant(graph, f"{name}.scale", scale.numpy())


def _gather(
    graph: ir.Graph,
    name: str,
    q: ir.Value,
    scale: ir.Value,
    ids: ir.Value | None,
    width: int,
    bits: int,
) -> list[ir.Node]:
    """Rows of a table, `width` values each, whose bytes q (V, G, …) may be a product's too."""
    V, G, n_bytes = q.const_value.numpy().shape  # type: ignore[union-attr]
    flat = ir.node("Reshape", [q, constant(graph, f"{name}.rows", np.array([V, G * n_bytes]))])
    attributes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    inputs = [flat.outputs[0], ids, scale]
    new = [flat, ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)]
    if width != G * BLOCK:
        ends = {"begin": 0, "width": width, "axis": -1}
        cut = [constant(graph, f"{name}.{key}", np.array([n])) for key, n in ends.items()]
        new.append(ir.node("Slice", [new[-1].outputs[0], *cut]))
    return new


def _share(graph: ir.Graph, weight: ir.Value, product: ir.Node, bits: int) -> None:
    """Let the embeddings, Gather(Transpose(weight)), read the product's bytes."""
    q, scale = product.inputs[1:3]
    assert q is not None and scale is not None
    width = int(weight.shape[0]) if weight.shape is not None else 0  # type: ignore[arg-type]
    for use in tuple(weight.uses()):
        if use.node.op_type != "Transpose":
            continue
        for gather in [u.node for u in use.node.outputs[0].uses()]:
            replace(graph, gather, *_gather(graph, HEAD, q, scale, gather.inputs[1], width, bits))


def _is_sensitive(name: str, n_layers: int) -> bool:
    """llama.cpp's choice for its mixed types: the vocabulary; the first and last eighth of the
    layers and every third between."""
    if name == HEAD:
        return True
    found = _LAYER.search(name)
    if found is None:
        return False
    layer, eighth = int(found[1]), n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _name(node: ir.Node) -> str:
    weight = node.inputs[1]
    return "" if weight is None else str(weight.name)


def _is_weight(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    )
