"""The terms of `targets/curvature.py` of a Hugging Face model's weights, and what it costs to round
the activations that they are multiplied with.

ONNX Runtime rounds activations of 8-bit layers on 256 levels between the least and the largest
value of a whole tensor, zero among them; those of layers in blocks on 255 levels of each block of
32. An error of rounding is taken to be even over its step, so that its variance is step^2 / 12.

Letters: K inputs of a layer, G its blocks of 32.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.targets.curvature import Curvature, Loss, Term, collect, write_curvature
from edgelm.targets.onnx.blockwise import BLOCK


class _Inputs:
    """Of a layer's inputs: mean squares of the steps that they are rounded to, and x x^T."""

    def __init__(self, K: int) -> None:
        self.moments = torch.zeros(K, K)
        self.of_tensor = torch.zeros(())
        self.of_blocks = torch.zeros(-(-K // BLOCK))
        self._n = 0

    def look(self, module: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2)
        self.moments.addmm_(x.T, x)
        step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
        padded = torch.nn.functional.pad(x, (0, -x.shape[1] % BLOCK))
        blocks = padded.unflatten(1, (-1, BLOCK)).abs().amax(2) / 127
        self._n += 1
        self.of_tensor += (step.square() - self.of_tensor) / self._n
        self.of_blocks += (blocks.square().mean(0) - self.of_blocks) / self._n


def write_terms(path: Path, model: Any, losses: Iterable[Loss]) -> None:
    """Run and differentiate each scalar of `model`: the terms of its linear layers and embedding
    tables, by the names of their weights, and what is to be known of their inputs.

    Raises ModelError without losses, and for values that are not finite."""
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    layers = {f"{n}.weight": m for n, m in modules.items() if isinstance(m, torch.nn.Linear)}
    tables = {f"{n}.weight": m for n, m in modules.items() if isinstance(m, torch.nn.Embedding)}
    inputs = {name: _Inputs(m.in_features) for name, m in layers.items()}
    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_pre_hook(inputs[name].look).remove)
        terms = collect(layers, tables, losses)
    more: dict[str, Tensor] = {}
    for name, found in inputs.items():
        more[f"{name}:tensor"], more[f"{name}:blocks"] = found.of_tensor, found.of_blocks
        more[f"{name}:inputs"] = found.moments
    write_curvature(path, {name: [term] for name, term in terms.items()}, more)


def input_moments(curvature: Curvature, name: str) -> Tensor:
    """The sum of x x^T (K, K) of what a layer's weight (N, K) is multiplied with."""
    return curvature.tensor(f"{name}:inputs")


def tensor_rounding_cost(curvature: Curvature, name: str, weight: Tensor) -> float:
    """What rounding the inputs of weight (N, K) costs, one step a tensor."""
    step = curvature.tensor(f"{name}:tensor")
    return _cost(curvature.terms(name)[0], weight, step.expand(weight.shape[1]))


def block_rounding_cost(curvature: Curvature, name: str, weight: Tensor) -> float:
    """The same, one step a block."""
    steps = curvature.tensor(f"{name}:blocks").repeat_interleave(BLOCK)
    return _cost(curvature.terms(name)[0], weight, steps[: weight.shape[1]])


def _cost(term: Term, weight: Tensor, step_squares: Tensor) -> float:
    """Errors of inputs that know nothing of each other: variances of outputs (N,), weighed."""
    return 0.5 * float(((weight.square() @ (step_squares / 12)) * term.rows).sum())
