"""How rounding errors of a matrix's columns are handed on to those behind (GPTQ, Frantar et al.
2022, arXiv:2210.17323).

What a matrix W (R, C) loses by being W + D is the sum over its rows of d H d^T, H (C, C) the second
moments of what it is multiplied with. After column j is rounded by an error e, the columns behind
it take over e / U[j, j] * U[j, j + 1 :].

Letters: R rows and C columns of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgelm.targets.grid import Grid

_DAMPING = 0.01  # of the mean of H's diagonal, added to it
_CHUNK = 128  # columns after which all the others are brought up to date


def factor(H: Tensor) -> Tensor:
    """H (C, C), positive semidefinite -> U (C, C) float32, the upper Cholesky factor of its damped
    inverse."""
    H = H.double()
    mean = H.diagonal().mean()
    damped = H + torch.eye(len(H), dtype=torch.float64) * (_DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def round_to_grid(weight: Tensor, grid: Grid, H: Tensor) -> Tensor:
    """weight (R, C), H (C, C) -> values on a grid whose scales are set (R, C). Columns with the
    largest inputs are rounded first."""
    C = weight.shape[1]
    order = H.diagonal().argsort(descending=True)
    U = factor(H[order][:, order])
    left = weight[:, order].clone()
    found = torch.empty_like(left)
    columns = [grid.column(c) for c in order.tolist()]
    for start in range(0, C, _CHUNK):
        stop = min(start + _CHUNK, C)
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            column = left[:, j : j + 1]
            value = columns[j].round(column)
            found[:, j : j + 1] = value
            error = (column - value) / U[j, j]
            left[:, j + 1 : stop] -= error * U[j, j + 1 : stop]
            errors[:, j - start : j - start + 1] = error
        left[:, stop:] -= errors @ U[start:stop, stop:]
    return grid.round(found[:, order.argsort()])
