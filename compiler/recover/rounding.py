"""A model's linear layers, rounded so that errors are made up for (targets/feedback.py).

H is the sum of x x^T over calibration texts, x what a layer is given.

Letters: K inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module

from edgelm.targets.feedback import round_to_grid
from edgelm.targets.grid import Grid

MAX_BYTES = 2**30  # of matrices H in memory at once
# Of a step: how far from its level a latent may lie. Near 0.5 the first steps of a training, which
# are mostly noise, would undo the rounding.
_EDGE = 0.25

Batches = Callable[[], Iterable[dict[str, Any]]]
Advance = Callable[[int, int], None]


def round_model(
    model: Module, grids: Mapping[str, Grid], batches: Batches, advance: Advance
) -> dict[str, Tensor]:
    """Values on their grids (N, K) of the model's linear layers, by the parameter's name.

    `batches` gives the model's inputs, the same ones each time."""
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Linear)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    wanted = {k: v for k, v in layers.items() if k in grids and v is not output}
    done: dict[str, Tensor] = {}
    for names in _groups(wanted):
        hessians = _hessians(model, {name: wanted[name] for name in names}, batches())
        for name in names:
            done[name] = round_to_grid(wanted[name].weight.data, grids[name], hessians[name])
            advance(len(done), len(wanted))
    return done


def latents_near(weight: Tensor, values: Tensor, grid: Grid) -> Tensor:
    """The weights (R, C), moved so that grid.round gives `values`, and not by a hair."""
    step = grid.scale.abs().repeat_interleave(grid.block, 1)[:, : weight.shape[1]]
    if grid.table is not None:  # its steps are uneven
        return torch.where(grid.round(weight) == values, weight, values)
    return weight.clamp(values - _EDGE * step, values + _EDGE * step)


def _hessians(
    model: Module, layers: Mapping[str, Linear], batches: Iterable[dict[str, Any]]
) -> dict[str, Tensor]:
    """H (K, K) of each layer, one and the same for layers with a common input."""
    sums: dict[str, Tensor] = {}
    owners: dict[str, str] = {}  # layer -> the layer that was the first with its input
    last: list[Any] = [None, ""]  # (input, owner)
    mask: list[Tensor | None] = [None]

    def watch(name: str) -> Any:
        def hook(module: Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            if name not in owners:
                owners[name] = last[1] if x is last[0] else name
            last[:] = [x, owners[name]]
            if owners[name] != name:
                return
            rows = x.reshape(-1, x.shape[-1]).float()
            if mask[0] is not None and mask[0].numel() == len(rows):
                rows = rows[mask[0].reshape(-1).bool()]
            if name not in sums:
                sums[name] = torch.zeros(rows.shape[1], rows.shape[1])
            sums[name].addmm_(rows.T, rows)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            for batch in batches:
                mask[0] = batch.get("attention_mask")
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[owners[name]] for name in layers}


def _groups(layers: Mapping[str, Linear]) -> Iterable[Sequence[str]]:
    """Names of layers whose matrices H fit in memory together."""
    group: list[str] = []
    n_bytes = 0
    for name, layer in layers.items():
        size = 4 * layer.in_features**2
        if group and n_bytes + size > MAX_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(name)
        n_bytes += size
    if group:
        yield group
