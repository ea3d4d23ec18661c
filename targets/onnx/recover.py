"""What the 4-bit matrices of a decoder's folder can hold.

Which of the checkpoint's matrices a product of the built graph was made of is told by their rows,
which the builder moves about but does not change. `blockwise.quantize_blocks` gives values that lie
on a grid back as they are, so trained values are lowered like any others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors import safe_open
from torch import Tensor

from edgelm.targets.base import LowerRequest
from edgelm.targets.grid import Grid, Grids
from edgelm.targets.onnx.blockwise import BLOCK, PEAK, choose_bits, quantize_blocks, weight_of
from edgelm.targets.onnx.build import build
from edgelm.targets.onnx.store import FILE


def grids(request: LowerRequest) -> Grids:
    """Matrices with 8 bits stay as they are: they lose next to nothing. Raises ModelError."""
    found: dict[str, Grid] = {}
    fixed: set[str] = set()
    with tempfile.TemporaryDirectory(dir=request.folder, prefix=".building-") as scratch:
        build(request.model_dir, Path(scratch) / "built")
        model = ir.load(Path(scratch) / "built" / FILE)
        matrices = _by_first_row(request.model_dir)
        for node, bits in choose_bits(model.graph, 4):
            for name, weight in _parts(weight_of(node), matrices):
                if bits == 4:
                    _, scale = quantize_blocks(weight, 4)
                    found[name] = Grid(scale, BLOCK, -8, 7, peak=PEAK)
                else:
                    fixed.add(name)
    return Grids(found, frozenset(fixed))


def _by_first_row(folder: Path) -> dict[bytes, list[tuple[str, Tensor]]]:
    """The checkpoint's matrices (N, K) in float32."""
    found: dict[bytes, list[tuple[str, Tensor]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is no mapping
                if len(file.get_slice(name).get_shape()) == 2:
                    weight = file.get_tensor(name).float()
                    found.setdefault(_key(weight[0]), []).append((name, weight))
    return found


def _parts(
    weight: Tensor, matrices: dict[bytes, list[tuple[str, Tensor]]]
) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's matrices whose rows are those of weight (N, K), one behind the other; rows
    that are no one's are passed over."""
    row = 0
    while row < len(weight):
        n_rows = 1
        for name, matrix in matrices.get(_key(weight[row]), ()):
            if torch.equal(weight[row : row + len(matrix)], matrix):
                yield name, matrix
                n_rows = len(matrix)
        row += n_rows


def _key(row: Tensor) -> bytes:
    return row.contiguous().numpy().tobytes()
