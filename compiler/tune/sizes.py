"""The least size that a variant can have, known before anything is trained: its weights, at the
fewest bits that its precision stores any weight in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.compiler.passes.shrink import is_shrunk
from edgelm.compiler.recipe import Recipe, split_target
from edgelm.targets import precision_of

# which are left out, folded into others or cut, where a target does so
_NOT_COUNTED = {"pooler", "position_embeddings", "token_type_embeddings"}
_FEWEST_BITS = 1.0  # of any type that a target does not tell of


@dataclass(frozen=True)
class Weights:
    """How many weights the matrices of a model have."""

    stored: int  # heads, poolers and positions left out, tied matrices once
    multiplied: int  # of those, with each token


def count_weights(folder: Path, recipe: Recipe) -> Weights:
    """Of the model that `folder`'s config.json describes, or of what the recipe leaves of it; it is
    made without weights. Raises ModelError for families that lose no parts."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    share = resize(config, recipe) if is_shrunk(recipe) else 1.0
    generates = recipe.task == "text-generation"
    with torch.device("meta"):
        if generates:
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        else:
            model = AutoModel.from_config(config, trust_remote_code=False)
    stored = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim == 2 and not _NOT_COUNTED & set(name.split("."))
    )
    table = model.get_input_embeddings().weight
    if generates and model.get_output_embeddings().weight is table:
        return Weights(stored, stored)
    multiplied = int((stored - table.numel()) * share)
    return Weights(table.numel() + multiplied, multiplied)


def resize(config: Any, recipe: Recipe) -> float:
    """Set the config to what pruning leaves; the share that is left for sure of its matrices."""
    from edgelm.compiler.distil.pruning import evenly, is_decoder, names_of, shape_of, smaller
    from edgelm.targets.decoders import cut_config

    if recipe.distil.student is not None:  # of another shape, which is not looked at
        return 0.0
    whole = shape_of(config)
    left, names = smaller(whole, recipe.prune), names_of(config)
    if is_decoder(config):
        kept = evenly(whole.layers, left.layers)
        small = cut_config(config, layers=kept, n_groups=left.heads, n_columns=left.ffn)
        config.update(small.to_dict())
        return 1.0
    setattr(config, names.n_layers, left.layers)
    setattr(config, names.width, left.ffn)
    return left.heads / whole.heads


def floor_bytes(weights: Weights, spec: str, *, own_types: bool = False) -> int:
    """No variant `TARGET:PRECISION` is smaller. `own_types`: a recipe gives tensors types."""
    known = precision_of(*split_target(spec)).least_bits
    bits = _FEWEST_BITS if own_types or known is None else known
    return int(weights.stored * bits / 8)
