"""How much the task's divergence grows with an error of each matrix, to second order.

For a matrix W (R, C) that is W + D the divergence grows by half the sum over the rows of
rows[r] * d_r moments d_r^T. With x the vectors that W is multiplied with, and g the gradients of a
scalar whose squared gradients are the divergence's second derivatives (`compiler/allocate/
probes.py`), moments (C, C) is the mean of x x^T weighed by |g|^2, and rows (R,) the mean of g^2:
the Kronecker factors of Martens and Grosse 2015 (arXiv:1503.05671), rows taken as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgelm.runtime.errors import ModelError

_UNSEEN = 0.02  # of a table's weight that is spread over all tokens: texts to come hold others


@dataclass(frozen=True)
class Term:
    """One use of a matrix."""

    moments: torch.Tensor  # (C, C), float32
    rows: torch.Tensor  # (R,), float32

    def cost(self, error: torch.Tensor) -> float:
        """What an error (R, C) costs, to second order and as if it were the only one: it ranks
        errors of one task. For classifiers label flips are counted too."""
        total = 0.0
        for part, rows in zip(error.split(8192), self.rows.split(8192), strict=True):
            total += float((((part @ self.moments) * part).sum(dim=1) * rows).sum())
        return 0.5 * total


class _Sum:
    """A term being summed up."""

    def __init__(self, R: int, C: int) -> None:
        self._moments = torch.zeros(C, C)
        self._rows = torch.zeros(R, dtype=torch.float64)
        self._weight = 0.0

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Inputs (n, C) and gradients of the outputs (n, R)."""
        squares = g.square()
        weight = squares.sum(dim=1)
        self._moments.addmm_((x * weight[:, None]).T, x)
        self._rows += squares.sum(dim=0)
        self._weight += float(weight.sum())

    def add_rows(self, ids: torch.Tensor, g: torch.Tensor) -> None:
        """Rows looked up (n,), and gradients of what was found (n, C)."""
        weight = g.square().sum(dim=1).double()
        self._moments.addmm_(g.T, g)
        self._rows.index_add_(0, ids, weight)
        self._weight += float(weight.sum())

    def term(self, n_predictions: int, unseen: float = 0.0) -> Term:
        rows = self._rows / n_predictions
        rows = rows * (1 - unseen) + rows.mean() * unseen
        moments = self._moments / self._weight if self._weight > 0 else self._moments
        return Term(moments, rows.float())


Loss = tuple[Callable[[], torch.Tensor], int]  # gives the scalar, of how many predictions


def collect(
    layers: Mapping[str, Any], tables: Mapping[str, Any], losses: Iterable[Loss]
) -> dict[str, Term]:
    """Run and differentiate each scalar of a model: the term of the weights of each linear layer
    and each embedding table, by the names given. No weight of the model may want a gradient.

    Raises ModelError without losses, and for values that are not finite."""
    sums = {name: _Sum(m.out_features, m.in_features) for name, m in layers.items()}
    lookups = {name: _Sum(*m.weight.shape) for name, m in tables.items()}
    n_predictions = 0
    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(_watch(sums[name])).remove)
        for name, module in tables.items():
            hooks.callback(module.register_forward_hook(_watch_table(lookups[name])).remove)
        for loss, n in losses:
            loss().backward()
            n_predictions += n
    if n_predictions == 0:
        raise ModelError("sensitivities need at least one text")
    found = {name: total.term(n_predictions) for name, total in sums.items()}
    found |= {name: total.term(n_predictions, _UNSEEN) for name, total in lookups.items()}
    for name, term in found.items():
        if not (term.moments.isfinite().all() and term.rows.isfinite().all()):
            raise ModelError(f"the sensitivity of {name} is not finite")
    return found


def _watch(total: _Sum) -> Any:
    def look(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0].detach().flatten(0, -2)
        output.register_hook(lambda g: total.add(x, g.flatten(0, -2)))

    return look


def _watch_table(total: _Sum) -> Any:
    """Gradients begin at what was looked up: no weight has one."""

    def look(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        ids = inputs[0].detach().flatten()
        found = output.detach().requires_grad_(True)
        found.register_hook(lambda g: total.add_rows(ids, g.flatten(0, -2)))
        return found

    return look


def write_curvature(
    path: Path, terms: Mapping[str, list[Term]], more: Mapping[str, torch.Tensor] | None = None
) -> None:
    """One file of all terms, and of `more` tensors."""
    from safetensors.torch import save_file

    tensors = dict(more or {})
    for name, of_matrix in terms.items():
        for i, term in enumerate(of_matrix):
            tensors[f"{name}:{i}:moments"], tensors[f"{name}:{i}:rows"] = term.moments, term.rows
    save_file(tensors, path)


class Curvature:
    """A file of terms, read matrix by matrix."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(path, framework="pt")
        self._keys = frozenset(self._file.keys())

    def __contains__(self, name: str) -> bool:
        return f"{name}:0:rows" in self._keys

    def terms(self, name: str) -> list[Term]:
        """The uses of a matrix, none of one that was not looked at."""
        return list(self._terms(name))

    def tensor(self, key: str) -> torch.Tensor:
        """One of `more`."""
        return self._file.get_tensor(key)

    def _terms(self, name: str) -> Iterator[Term]:
        i = 0
        while f"{name}:{i}:rows" in self._keys:
            tensor = self._file.get_tensor
            yield Term(tensor(f"{name}:{i}:moments"), tensor(f"{name}:{i}:rows"))
            i += 1
