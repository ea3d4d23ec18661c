"""Rounding with error feedback (targets/feedback.py) into the blocks of a GGUF type.

Columns are rounded one after the other, and those left take over the error. The scales of a block
come from llama.cpp's own search, made when its turn comes, on what the weights are by then. Types
whose codes are not known here (those of codebooks) hand on errors from block to block.

Letters: R rows and C columns of a matrix, B values in a block.
"""

from __future__ import annotations

import numpy as np
import torch

from edgelm.targets.gguf.rounding.codes import KNOWN, put_codes, read_grid
from edgelm.targets.gguf.rounding.types import (
    Bytes,
    block_size,
    dequantize_rows,
    quantize_rows,
)

_CHUNK_ROWS = 8192  # of a large table, in memory at once


def round_matrix(
    weight: torch.Tensor, kind: str, U: torch.Tensor, importance: torch.Tensor
) -> tuple[Bytes, torch.Tensor]:
    """weight (R, C), U = factor(H), importance (C,) above 0 for the scales -> (bytes (R, N), the
    values that they stand for (R, C)). C must be a multiple of the block."""
    parts = [_round(rows, kind, U, importance) for rows in weight.float().split(_CHUNK_ROWS)]
    data, values = zip(*parts, strict=True)
    return np.concatenate(data), torch.cat(values)


def _round(
    weight: torch.Tensor, kind: str, U: torch.Tensor, importance: torch.Tensor
) -> tuple[Bytes, torch.Tensor]:
    B = block_size(kind)
    left = weight.clone()
    C = left.shape[1]
    data: list[Bytes] = []
    values: list[torch.Tensor] = []
    for start in range(0, C, B):
        block, inside = slice(start, start + B), U[start : start + B, start : start + B]
        wanted = left[:, block].contiguous()
        blocks = quantize_rows(wanted.numpy(), kind, importance[block].numpy())
        if kind in KNOWN:
            blocks = _round_block(wanted, blocks, kind, inside)
        rounded = torch.from_numpy(dequantize_rows(blocks, kind, B))
        data.append(blocks)
        values.append(rounded)
        if start + B < C:
            error = torch.linalg.solve_triangular(inside, wanted - rounded, upper=True, left=False)
            left[:, start + B :] -= error @ U[block, start + B :]
    return np.concatenate(data, axis=1), torch.cat(values, dim=1)


def _round_block(wanted: torch.Tensor, blocks: Bytes, kind: str, U: torch.Tensor) -> Bytes:
    """New codes for blocks with set scales; wanted (R, B), U (B, B)."""
    grid = read_grid(blocks, kind)
    bottom, step = (torch.from_numpy(a.T.copy()) for a in (grid.bottom, grid.step))
    levels = torch.from_numpy(grid.levels)
    between = (levels[1:] + levels[:-1]) / 2
    inverse = torch.where(step == 0, 0.0, 1 / step)
    left = wanted.T.contiguous()
    codes = torch.empty(left.shape, dtype=torch.int64)
    for j, row in enumerate(left):
        codes[j] = torch.bucketize((row - bottom[j]) * inverse[j], between)
        error = (row - bottom[j] - levels[codes[j]] * step[j]) / U[j, j]
        left[j + 1 :].addr_(U[j, j + 1 :], error, alpha=-1)
    return put_codes(blocks, kind, codes.T.numpy())
