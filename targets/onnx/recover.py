"""What the matrices of a variant can hold, by the names of the checkpoint's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors import safe_open
from torch import Tensor

from edgelm.targets.base import LowerRequest
from edgelm.targets.causal import is_causal
from edgelm.targets.grid import Grid, Grids
from edgelm.targets.onnx import auto
from edgelm.targets.onnx.blockwise import bits_of, choose_bits, gated, weight_of
from edgelm.targets.onnx.build import build
from edgelm.targets.onnx.grids import grid_of
from edgelm.targets.onnx.lower import fused
from edgelm.targets.onnx.matrices import Matrices
from edgelm.targets.onnx.precisions import INT4, INT8_BLOCKS
from edgelm.targets.onnx.quantize import linears, tables
from edgelm.targets.onnx.store import FILE
from edgelm.targets.precision import AUTO

_KINDS = {4: INT4, 8: INT8_BLOCKS}  # of bits, in blocks


def grids(request: LowerRequest) -> Grids:
    """Matrices with 8 bits in blocks stay as they are: they lose next to nothing. Raises
    ModelError."""
    found: dict[str, Grid] = {}
    fixed: set[str] = set()
    for name, weight, kind, is_table in _typed(request):
        reduce_range = request.quantization.reduce_range and not is_table
        grid = grid_of(weight, kind, reduce_range=reduce_range)
        if grid is not None:
            found[name] = grid
        elif kind == INT8_BLOCKS:
            fixed.add(name)
    return Grids(found, frozenset(fixed))


def _typed(request: LowerRequest) -> Iterator[tuple[str, Tensor, str, bool]]:
    """Name, values (N, K) and type of each of the model's matrices, and whether it is a table."""
    if request.precision == AUTO:
        names = auto.Names(request.model_dir, request.task)
        graph = fused(replace(request, recovered=None), "int4").graph
        for matrix in auto.matrices(graph, names):
            for name, weight in matrix.parts:
                yield name, weight, request.types[matrix.name], matrix.is_table
        return
    known = Matrices(_weights(request.model_dir))
    of_task = _of_decoder if request.task.kind == "text-generation" else _of_whole_texts
    for rows, bits, is_table in of_task(request):
        for name, weight in known.parts(rows):
            yield name, weight, _KINDS[bits], is_table


def _of_decoder(request: LowerRequest) -> Iterator[tuple[Tensor, int, bool]]:
    """Matrices (N, K) of the graph, their bits, and whether they are tables alone."""
    with tempfile.TemporaryDirectory(dir=request.folder, prefix=".building-") as scratch:
        build(request.model_dir, Path(scratch) / "built")
        graph = ir.load(Path(scratch) / "built" / FILE).graph
        for node, bits in choose_bits(graph, 4):
            yield weight_of(node), bits, False


def _of_whole_texts(request: LowerRequest) -> Iterator[tuple[Tensor, int, bool]]:
    graph = fused(replace(request, recovered=None)).graph
    in_8_bits = {id(node) for node in gated(graph)} if is_causal(request.model_dir) else set[int]()
    for linear in linears(graph):
        bits = 8 if id(linear.product) in in_8_bits else bits_of(linear)
        yield torch.from_numpy(linear.weight).T, bits, False
    for _, table in tables(graph):
        yield torch.from_numpy(table), 4, True


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's matrices (N, K) in float32."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is no mapping
                if len(file.get_slice(name).get_shape()) == 2:
                    yield name, file.get_tensor(name).float()
