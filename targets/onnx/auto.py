"""The precision auto: each matrix of an encoder in float32, int8 or int4, by what that costs.

int8 and int4 are what the precisions of that name make of a matrix, but that errors of int8 too are
made up for where the variant is recovered. Products can have 8 bits in blocks too: the activations
of int8 have one scale for a whole tensor, so that with outliers it is no better than int4. Heads,
which work on one row a text and weigh little, have those or float32.

A graph's matrix bears the names of the model's weights that it was made of. Its bytes in the file
are those of its constants and of the nodes that read it. They are an upper bound, which a file
comes near to: attention is joined with its product where that is not in int4, and layers share what
is equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from torch import Tensor

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.targets.base import LowerRequest
from edgelm.targets.costs import Option, Row, Table, grade_like
from edgelm.targets.curvature import Curvature
from edgelm.targets.feedback import round_to_grid
from edgelm.targets.onnx.blockwise import (
    bits_of,
    dequantize_blocks,
    linear_to_blocks,
    quantize_blocks,
    table_to_blocks,
)
from edgelm.targets.onnx.curvature import (
    block_rounding_cost,
    input_moments,
    tensor_rounding_cost,
)
from edgelm.targets.onnx.export import load
from edgelm.targets.onnx.fuse import Choose, Weights, tidy
from edgelm.targets.onnx.grids import grid_of
from edgelm.targets.onnx.half import halve
from edgelm.targets.onnx.matrices import Matrices
from edgelm.targets.onnx.precisions import FLOAT, INT4, INT8, INT8_BLOCKS, KINDS
from edgelm.targets.onnx.quantize import (
    LinearNode,
    Quantized,
    linears,
    quantize_columns,
    quantize_linear,
    quantize_table,
    tables,
)

BLOCKS = {INT4: 4, INT8_BLOCKS: 8}  # type -> bits
_BITS = {FLOAT: 32.0, INT8: 8.0, INT8_BLOCKS: 8.5, INT4: 4.5}  # of a weight, with its scales
_WEIGHTS: dict[str, Weights] = {FLOAT: "float", INT8: "int8", INT4: "int4", INT8_BLOCKS: "int4"}
_FIELD_BYTES = 8  # at most, of the tag and length of a field of a file
_TENSOR_BYTES = 48  # at most, of a constant that are neither its values nor its name
_NAME_BYTES = 4  # at most, by which a value's name grows where there are more nodes


@dataclass(frozen=True)
class Matrix:
    """A matrix of the graph, and who reads it."""

    name: str
    parts: tuple[tuple[str, Tensor], ...]  # the model's weights (N, K), one behind the other
    uses: tuple[LinearNode | ir.Node, ...]  # linear layers; or Gathers, of a table
    values: NDArray[np.float32]  # as the graph has it: (K, N) of linear layers, (V, H) of tables

    @property
    def is_table(self) -> bool:
        return isinstance(self.uses[0], ir.Node)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types it can have, the smallest first."""
        first = self.uses[0]
        if not isinstance(first, LinearNode):
            return (INT4, INT8, FLOAT)
        return (INT8_BLOCKS, FLOAT) if bits_of(first) == 8 else (INT4, INT8, INT8_BLOCKS, FLOAT)


class Names:
    """Names of the graph's matrices."""

    def __init__(self, model_dir: Path, task: Task) -> None:
        weights = load(model_dir, task, "eager").named_parameters()
        self._known = Matrices((name, w.detach()) for name, w in weights if w.ndim == 2)

    def parts(self, rows: Tensor) -> tuple[tuple[str, Tensor], ...]:
        """The model's weights that make up all of (N, K). Raises ModelError."""
        found = tuple(self._known.parts(rows))
        if sum(len(weight) for _, weight in found) != len(rows):
            raise ModelError(
                f"a matrix {tuple(rows.shape)} of the exported model is none of the model's own",
                hint="take the precision int8 or int4",
            )
        return found

    def name(self, rows: Tensor) -> str:
        """Of (N, K). Raises ModelError."""
        return _joined(self.parts(rows))


def _joined(parts: tuple[tuple[str, Tensor], ...]) -> str:
    return " + ".join(name for name, _ in parts)


def choose_fusion(names: Names, types: Mapping[str, str]) -> Choose:
    """How each layer's attention is joined with its product."""
    return lambda wide: _WEIGHTS[types[names.name(torch.from_numpy(wide).T)]]


def quantize_auto(
    model: ir.Model, names: Names, types: Mapping[str, str], *, reduce_range: bool
) -> str:
    """Put each matrix into its type, in place. Gives the precision whose limits hold for that.
    Raises ModelError."""
    quantized: Quantized = {}
    n_bits = n_weights = 0.0
    for matrix in matrices(model.graph, names):
        kind = types[matrix.name]
        _put(model.graph, matrix, kind, quantized, reduce_range)
        n_bits += _BITS[kind] * matrix.values.size
        n_weights += matrix.values.size
    tidy(model)
    return grade_like(n_bits / n_weights)


def tabulate(model: ir.Model, request: LowerRequest) -> Table:
    """What each type of each matrix takes and costs. `model` is the float graph with attention
    apart from its product, as with int4. Raises ModelError."""
    assert request.curvature is not None
    names, curvature = Names(request.model_dir, request.task), Curvature(request.curvature)
    common.ClearMetadataAndDocStringPass()(model)
    found = list(matrices(model.graph, names))
    sizes = {kind: _sizes(model, names, kind, request) for kind in KINDS if kind != FLOAT}
    sizes[FLOAT] = {matrix.name: _float_bytes(matrix) for matrix in found}
    rows: list[Row] = []
    for i, matrix in enumerate(found):
        options = (
            Option(kind, sizes[kind][matrix.name], _cost(matrix, kind, curvature, request))
            for kind in matrix.kinds
        )
        rows.append(Row(matrix.name, matrix.values.size, tuple(options)))
        request.advance(i + 1, len(found))
    return Table(tuple(rows), ir.to_proto(model).ByteSize() - sum(sizes[FLOAT].values()))


def matrices(graph: ir.Graph, names: Names) -> Iterator[Matrix]:
    """Each matrix once, whoever reads it."""
    found: dict[str, tuple[list[LinearNode | ir.Node], NDArray[np.float32]]] = {}
    for linear in linears(graph):
        found.setdefault(linear.name, ([], linear.weight))[0].append(linear)
    for gather, table in tables(graph):
        assert gather.inputs[0] is not None
        found.setdefault(str(gather.inputs[0].name), ([], table))[0].append(gather)
    for uses, values in found.values():
        rows = torch.from_numpy(values)
        parts = names.parts(rows if isinstance(uses[0], ir.Node) else rows.T)
        yield Matrix(_joined(parts), parts, tuple(uses), values)


def _put(
    graph: ir.Graph, matrix: Matrix, kind: str, quantized: Quantized, reduce_range: bool
) -> None:
    """Every use of a matrix, in place."""
    scale: ir.Value | None = None
    for use in matrix.uses:
        if kind in BLOCKS:
            bits = BLOCKS[kind]
            if isinstance(use, LinearNode):
                scale = linear_to_blocks(graph, use, bits)
            else:
                scale = table_to_blocks(graph, use, matrix.values, bits)
        elif kind == INT8 and isinstance(use, LinearNode):
            quantize_linear(graph, use, quantized, reduce_range=reduce_range)
        elif kind == INT8 and isinstance(use, ir.Node):
            quantize_table(graph, use, matrix.values)
    if scale is not None:
        halve(graph, scale)


def _sizes(model: ir.Model, names: Names, kind: str, request: LowerRequest) -> dict[str, int]:
    """Bytes in one type of each matrix that can have it."""
    graph = model.clone().graph
    found: dict[str, int] = {}
    for matrix in matrices(graph, names):
        if kind not in matrix.kinds:
            continue
        nodes, constants = set(graph), set(graph.initializers)
        # nothing is shared: each matrix is counted as if it were alone
        _put(graph, matrix, kind, {}, request.quantization.reduce_range)
        made = [node for node in graph if node not in nodes]
        values = [v for name, v in graph.initializers.items() if name not in constants]
        found[matrix.name] = _node_bytes(made) + sum(_constant_bytes(v) for v in values if v.uses())
    return found


def _float_bytes(matrix: Matrix) -> int:
    """What leaves the float file with a matrix, at least."""
    nodes: list[ir.Node] = []
    for use in matrix.uses:
        nodes += [use] if isinstance(use, ir.Node) else list({use.product, use.end})
    values = [value for node in nodes for value in node.outputs if _is_described(value)]
    return sum(ir.to_proto(one).ByteSize() for one in (*nodes, *values)) + matrix.values.nbytes


def _node_bytes(nodes: list[ir.Node]) -> int:
    """At most."""
    total = 0
    for node in nodes:
        total += ir.to_proto(node).ByteSize() + _FIELD_BYTES
        total += _NAME_BYTES * (len(node.inputs) + len(node.outputs) + 1)
        values = [value for value in node.outputs if _is_described(value)]
        total += sum(ir.to_proto(v).ByteSize() + _FIELD_BYTES + _NAME_BYTES for v in values)
    return total


def _is_described(value: ir.Value) -> bool:
    """Whether the file states the value's type, beside the nodes."""
    is_known = value.type is not None or value.shape is not None
    return is_known and not value.is_graph_output()


def _constant_bytes(value: ir.Value) -> int:
    """At most."""
    assert value.const_value is not None
    return value.const_value.nbytes + len(str(value.name).encode()) + _TENSOR_BYTES


def _cost(matrix: Matrix, kind: str, curvature: Curvature, request: LowerRequest) -> float:
    """What a type loses of the task: by rounding the matrix, and what it is multiplied with.
    Raises ModelError."""
    if kind == FLOAT:
        return 0.0
    reduce_range = request.quantization.reduce_range and not matrix.is_table
    activations = tensor_rounding_cost if kind == INT8 else block_rounding_cost
    total = 0.0
    for name, weight in matrix.parts:
        terms = curvature.terms(name)
        if not terms:
            raise ModelError(
                f"what errors of {name} cost is not known: no linear layer or embedding reads it",
                hint="take the precision int8 or int4",
            )
        if request.feedback and not matrix.is_table:
            H = input_moments(curvature, name)
            values = _with_feedback(weight, kind, H, reduce_range=reduce_range)
        else:
            values = _rounded(weight, kind, reduce_range=reduce_range)
        total += sum(term.cost(values - weight) for term in terms)
        if not matrix.is_table:
            total += activations(curvature, name, weight)
    return total


def _rounded(weight: Tensor, kind: str, *, reduce_range: bool) -> Tensor:
    """The values (N, K) that a type holds."""
    if kind in BLOCKS:
        q, scale = quantize_blocks(weight, BLOCKS[kind])
        return dequantize_blocks(q, scale, BLOCKS[kind], weight.shape[1])
    q8, scales = quantize_columns(weight.T.numpy(), reduce_range=reduce_range)
    return torch.from_numpy((q8 * scales).T.copy())


def _with_feedback(weight: Tensor, kind: str, H: Tensor, *, reduce_range: bool) -> Tensor:
    """The values (N, K) that a recovered variant holds, but for the texts that H (K, K) is of."""
    grid = grid_of(weight, kind, reduce_range=reduce_range)
    if grid is None:
        return _rounded(weight, kind, reduce_range=reduce_range)
    return round_to_grid(weight, grid, H)
