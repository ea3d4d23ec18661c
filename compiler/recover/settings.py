"""Whether and how a variant is recovered."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgelm.compiler.recipe import Recipe, split_target
from edgelm.compiler.sections import TrainConfig
from edgelm.compiler.training import settled
from edgelm.runtime.errors import RecipeError
from edgelm.targets import precision_of

How = Literal["none", "round", "train"]
_BITS = 4  # of a level: up to how many `auto` recovers


def recovery(recipe: Recipe, spec: str) -> How:
    """What is done for this variant."""
    stated = recipe.recover.method
    if stated == "none" or not can_recover(recipe, spec):
        return "none"
    if stated != "auto":
        return stated
    has_data = recipe.data.train is not None
    bits = precision_of(*split_target(spec)).recovered_bits
    return "round" if has_data and bits is not None and bits <= _BITS else "none"


def can_recover(recipe: Recipe, spec: str) -> bool:
    """Whether the target knows this variant's grids."""
    target, precision = split_target(spec)
    row = precision_of(target, precision)
    # tensors of a script are not known; heads that were left out come back as rows of zeros
    is_foreign = recipe.gguf.converter is not None or recipe.prune.heads is not None
    if target == "gguf" and is_foreign:
        return False
    if recipe.prune.sparsity is not None:  # zeros would not stay
        return False
    return row.recovered_bits is not None and recipe.task in row.tasks


def check_recovery(recipe: Recipe) -> None:
    """Raise RecipeError for what was asked and cannot be."""
    stated = recipe.recover.method
    if stated in ("auto", "none"):
        return
    if recipe.data.train is None:
        raise RecipeError(
            f"recover.method: {stated!r} needs training data",
            hint="name it with --train FILE (with --no-train it serves for this alone)",
        )
    if not any(can_recover(recipe, spec) for spec in recipe.targets):
        raise RecipeError(
            f"recover.method: {stated!r}: none of the targets can be recovered",
            hint="GGUF files of 4 bits and more can, onnx:int4 and onnx:auto; not with "
            "--converter, --sparsity nor, in GGUF, with --prune-heads",
        )


def training(recipe: Recipe) -> TrainConfig:
    """The recipe's `train` with what `recover` says in its place."""
    stated, train = recipe.recover, settled(recipe)
    return replace(
        train,
        epochs=stated.epochs,
        batch_size=stated.batch_size or train.batch_size,
        learning_rate=stated.learning_rate,
        weight_decay=0.0,
        early_stop=0,
    )
