"""The values that a quantized matrix can hold, as a function that torch computes.

    value[r, c] = scale[r, g] * level + offset[r, g],   g = c // block

A target makes one for each matrix of a model, with the scales that its own quantizer chose. The
scales stay; training then moves weights from level to level, so that what is trained is what the
file holds.

Letters: R rows and C columns of a matrix, G blocks in a row. A last block may be shorter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Grid:
    """Of one matrix."""

    scale: Tensor  # (R, G) float32
    block: int  # columns that share a scale
    low: int
    high: int  # levels are low … high, both included
    offset: Tensor | None = None  # (R, G) float32
    table: Tensor | None = None  # float32, rising: level i stands for table[i]
    # The quantizer gives a grid's own values back where each block has a level this far from 0;
    # the largest weight of a block is moved there. 0: no need.
    peak: int = 0

    def round(self, weight: Tensor) -> Tensor:
        """weight (R, C) -> the nearest values, as a new tensor."""
        return self.values(self.levels(weight))

    def levels(self, weight: Tensor) -> Tensor:
        """weight (R, C) -> levels (R, C), whole numbers in float32."""
        R, C = weight.shape
        blocks = self._blocks(weight)
        inverse = torch.where(self.scale == 0, 0.0, 1 / self.scale)[..., None]
        if self.offset is None:
            x = blocks * inverse
        else:
            x = (blocks - self.offset[..., None]).mul_(inverse)
        if self.table is None:
            levels = x.round().clamp_(self.low, self.high)
        else:
            levels = torch.bucketize(x, (self.table[1:] + self.table[:-1]) / 2).float()
        if self.peak:
            _raise_peaks(levels, x, self.peak)
        return levels.reshape(R, -1)[:, :C]

    def values(self, levels: Tensor) -> Tensor:
        """levels (R, C) -> what they stand for, in the float32 operations of an engine."""
        R, C = levels.shape
        steps = levels if self.table is None else self.table[levels.long()]
        x = self._blocks(steps) * self.scale[..., None]
        if self.offset is not None:
            x += self.offset[..., None]
        return x.reshape(R, -1)[:, :C]

    def column(self, c: int) -> Grid:
        """That of one column; peaks are left out of account."""
        g = slice(c // self.block, c // self.block + 1)
        offset = None if self.offset is None else self.offset[:, g]
        return Grid(self.scale[:, g], 1, self.low, self.high, offset, self.table)

    def _blocks(self, x: Tensor) -> Tensor:
        """(R, C) -> (R, G, block)."""
        R, C = x.shape
        G = self.scale.shape[1]
        return pad(x, (0, G * self.block - C)).reshape(R, G, self.block)


def _raise_peaks(levels: Tensor, x: Tensor, peak: int) -> None:
    """Move the largest of each block of levels (R, G, block) out to +-peak, where it is less."""
    low, high = levels.aminmax(dim=-1)
    flat = torch.maximum(-low, high) < peak
    if not flat.any():
        return
    inside = x[flat]
    at = inside.abs().argmax(dim=-1, keepdim=True)
    found = inside.gather(-1, at)
    # a block of zeros is its own fixed point
    value = torch.where(found == 0, 0.0, torch.where(found < 0, -float(peak), float(peak)))
    levels[flat] = levels[flat].scatter(-1, at, value)


@dataclass(frozen=True)
class Grids:
    """Of a whole model."""

    matrices: Mapping[str, Grid]  # by the name of the Hugging Face model's parameter
    # parameters that the file rounds in another way: they stay as they are
    fixed: frozenset[str] = field(default_factory=frozenset[str])

    def within(self, prefix: str, names: Collection[str]) -> Grids:
        """By the names of a model without the head of its checkpoint, whose body's parameters are
        called `prefix`.NAME there: where NAME is one of `names`."""

        def inner(name: str) -> str:
            short = name.removeprefix(f"{prefix}.")
            return short if short in names else name

        matrices = {inner(name): grid for name, grid in self.matrices.items()}
        return Grids(matrices, frozenset(map(inner, self.fixed)))
