"""What 4-bit matrices can hold.

`blockwise.quantize_blocks` gives values that lie on a grid back as they are, so trained values are
lowered like any others.
"""

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
from edgelm.targets.onnx.blockwise import (
    BLOCK,
    PEAK,
    bits_of,
    choose_bits,
    gated,
    quantize_blocks,
    weight_of,
)
from edgelm.targets.onnx.build import build
from edgelm.targets.onnx.lower import fused
from edgelm.targets.onnx.matrices import Matrices
from edgelm.targets.onnx.quantize import linears, tables
from edgelm.targets.onnx.store import FILE


def grids(request: LowerRequest) -> Grids:
    """Matrices with 8 bits stay as they are: they lose next to nothing. Raises ModelError."""
    found: dict[str, Grid] = {}
    fixed: set[str] = set()
    known = Matrices(_weights(request.model_dir))
    of_task = _of_decoder if request.task.kind == "text-generation" else _of_whole_texts
    for matrix, bits in of_task(request):
        for name, weight in known.parts(matrix):
            if bits == 4:
                _, scale = quantize_blocks(weight, 4)
                found[name] = Grid(scale, BLOCK, -8, 7, peak=PEAK)
            else:
                fixed.add(name)
    return Grids(found, frozenset(fixed))


def _of_decoder(request: LowerRequest) -> Iterator[tuple[Tensor, int]]:
    """Matrices (N, K) of the graph, and their bits."""
    with tempfile.TemporaryDirectory(dir=request.folder, prefix=".building-") as scratch:
        build(request.model_dir, Path(scratch) / "built")
        graph = ir.load(Path(scratch) / "built" / FILE).graph
        for node, bits in choose_bits(graph, 4):
            yield weight_of(node), bits


def _of_whole_texts(request: LowerRequest) -> Iterator[tuple[Tensor, int]]:
    graph = fused(replace(request, recovered=None)).graph
    in_8_bits = {id(node) for node in gated(graph)} if is_causal(request.model_dir) else set[int]()
    for linear in linears(graph):
        bits = 8 if id(linear.product) in in_8_bits else bits_of(linear)
        yield torch.from_numpy(linear.weight).T, bits
    for _, table in tables(graph):
        yield torch.from_numpy(table), 4


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's matrices (N, K) in float32."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is no mapping
                if len(file.get_slice(name).get_shape()) == 2:
                    yield name, file.get_tensor(name).float()
