"""AdamW of float weights, the latents, of which the model holds the rounded values.

The gradient of a rounded value is taken for that of its latent (the straight-through estimator,
Bengio et al. 2013, arXiv:1308.3432). Weights are rounded once in a step, not in each forward pass,
and what the model holds is at all times what a file can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from edgelm.targets.grid import Grid

_LATENTS = "latents"  # key of the state


class GridAdamW(torch.optim.AdamW):
    """Parameters with a grid hold grid.round(latent) after each step, the others are plain."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        grids: Mapping[str, Grid],
        latents: Mapping[str, Tensor],
        **options: Any,
    ) -> None:
        """`latents`, by name, are those of the parameters in `grids`; they are taken over."""
        super().__init__(list(parameters.values()), **options)
        self._held = [(parameters[name], grids[name]) for name in grids]
        self._latents = [latents[name] for name in grids]
        self._round()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the latents; then the parameters are rounded anew."""
        assert closure is None
        rounded = [parameter.data for parameter, _ in self._held]
        for (parameter, _), latent in zip(self._held, self._latents, strict=True):
            parameter.data = latent
        super().step()
        for (parameter, _), data in zip(self._held, rounded, strict=True):
            parameter.data = data
        self._round()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), _LATENTS: self._latents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        for latent, kept in zip(self._latents, own.pop(_LATENTS), strict=True):
            latent.copy_(kept)
        super().load_state_dict(own)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for (parameter, grid), latent in zip(self._held, self._latents, strict=True):
            parameter.copy_(grid.round(latent))
