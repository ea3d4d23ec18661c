"""How rounding errors of a matrix's columns are handed on to those behind (GPTQ, Frantar et al.
2022, arXiv:2210.17323).

What a matrix W (R, C) loses by being W + D is the sum over its rows of d H d^T, H (C, C) the second
moments of what it is multiplied with. After column j is rounded by an error e, the columns behind
it take over e / U[j, j] * U[j, j + 1 :].
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # of the mean of H's diagonal, added to it


def factor(H: Tensor) -> Tensor:
    """H (C, C), positive semidefinite -> U (C, C) float32, the upper Cholesky factor of its damped
    inverse."""
    H = H.double()
    mean = H.diagonal().mean()
    damped = H + torch.eye(len(H), dtype=torch.float64) * (_DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
