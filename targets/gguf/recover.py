"""What a quantized file can hold, and values of our own put into it.

The scales are those of the file that llama.cpp's quantizer makes of the float model. What was
trained lies on their grid: its levels take the place of the quantizer's, so that no value is
rounded a second time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf.layouts import LAYOUTS
from edgelm.targets.gguf.lower import MODEL_FILE, lower, plan_of
from edgelm.targets.gguf.plan import Move
from edgelm.targets.gguf.precisions import TENSOR_TYPES
from edgelm.targets.gguf.writer import interleave
from edgelm.targets.grid import Grid, Grids

_NAMES = {number: name for name, number in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of an open file."""

    name: str
    kind: str  # of TENSOR_TYPES
    data: NDArray[Any]  # (R, C) of floats, or (R, bytes of a row); mapped from the file


def grids(request: LowerRequest) -> Grids:
    """What the variant's matrices can hold, by the checkpoint's names.

    Raises ModelError, also for a model that a conversion script has to write."""
    if request.converter is not None:
        raise ModelError(
            "a file that a conversion script wrote cannot be recovered: where its tensors come "
            "from is not known",
            hint="leave gguf.converter out, or set recover.method: none",
        )
    sources = {move.name: move for move in plan_of(request).moves}
    found: dict[str, Grid] = {}
    fixed: set[str] = set()
    with tempfile.TemporaryDirectory(dir=request.folder, prefix=".grids-") as scratch:
        whole = replace(request, folder=Path(scratch), recovered=None, split_bytes=None)
        lower(whole)
        for tensor in _tensors(Path(scratch) / MODEL_FILE, "r"):
            move = sources.get(tensor.name)
            if move is None or tensor.kind == "f32":
                continue
            if tensor.kind not in LAYOUTS:
                fixed.add(move.source)
                continue
            found[move.source] = LAYOUTS[tensor.kind].grid(_in_order(tensor.data, move))
    return Grids(found, frozenset(fixed))


def put_values(path: Path, trained: Path) -> None:
    """Put the values of the float file `trained`, which has the same tensors in float32, into the
    quantized file. Raises ModelError for values that it cannot hold."""
    values = {tensor.name: tensor for tensor in _tensors(trained, "r")}
    for tensor in _tensors(path, "r+"):
        new = values[tensor.name].data
        if tensor.kind == "f32":
            tensor.data[:] = new
        layout = LAYOUTS.get(tensor.kind)
        if layout is None:
            continue
        grid = layout.grid(tensor.data)
        weight = torch.from_numpy(np.array(new, np.float32))
        levels = grid.levels(weight)
        if not torch.equal(grid.values(levels), weight):
            raise ModelError(f"{tensor.name}: the trained values are none that {path} can hold")
        layout.write(tensor.data, levels.numpy())


def _tensors(path: Path, mode: str) -> Iterator[_Tensor]:
    import gguf

    for tensor in gguf.GGUFReader(path, mode).tensors:  # type: ignore[arg-type]
        yield _Tensor(tensor.name, _NAMES[int(tensor.tensor_type)], tensor.data)


def _in_order(rows: NDArray[np.uint8], move: Move) -> NDArray[np.uint8]:
    """The file's rows in the order of the checkpoint's."""
    if not move.n_heads:
        return np.array(rows)
    order = interleave(np.arange(len(rows)), len(rows) // move.n_heads)
    return np.array(rows[np.argsort(order)])
