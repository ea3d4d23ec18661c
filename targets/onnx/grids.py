"""What matrices of each type can hold, as functions that torch computes.

The same search as when a file is written gives the scales, and it gives values of a grid back as
they are: what was trained is lowered like any other weights.

Letters: N rows and K columns of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgelm.targets.grid import Grid
from edgelm.targets.onnx.blockwise import BLOCK, PEAK, quantize_blocks
from edgelm.targets.onnx.precisions import INT4, INT8
from edgelm.targets.onnx.quantize import levels_of, quantize_columns


def grid_of(weight: Tensor, kind: str, *, reduce_range: bool) -> Grid | None:
    """Of weight (N, K), rows of outputs or of a table; None for types that have none: float32, and
    8 bits in blocks, which lose next to nothing."""
    if kind == INT4:
        _, scale = quantize_blocks(weight, 4)
        return Grid(scale, BLOCK, -8, 7, peak=PEAK)
    if kind == INT8:
        _, scales = quantize_columns(weight.T.numpy(), reduce_range=reduce_range)
        # rows of zeros stay what they are
        scale = torch.where(weight.any(dim=1), torch.from_numpy(scales), 0.0)
        limit = levels_of(reduce_range=reduce_range)
        return Grid(scale[:, None], weight.shape[1], -limit, limit, peak=limit)
    return None
