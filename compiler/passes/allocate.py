"""allocate: the type of each matrix of the precision auto, the least cost within a size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelm.compiler.allocate.knapsack import least_bytes, solve
from edgelm.compiler.context import Context
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.imatrix import has_texts
from edgelm.compiler.passes.sensitivity import Errors, Sensitivity
from edgelm.compiler.recipe import Recipe, split_target
from edgelm.compiler.sections import QuantizeConfig
from edgelm.compiler.units import parse_bytes, show_bytes
from edgelm.runtime.errors import RecipeError
from edgelm.targets.costs import Row, restricted
from edgelm.targets.precision import AUTO


def is_auto(spec: str) -> bool:
    """Whether `TARGET:PRECISION` is one whose matrices have types of their own."""
    return split_target(spec)[1] == AUTO


def allocate_passes(spec: str) -> list[Pass]:
    """The passes, where the variant needs them."""
    target = split_target(spec)[0]
    return [Sensitivity(target), Errors(target), Allocate(target)] if is_auto(spec) else []


def check_auto(recipe: Recipe, spec: str) -> None:
    """Raise RecipeError for what would fail after the training."""
    size = recipe.quantize.auto_size
    if size is not None and not any(map(is_auto, recipe.targets)):
        raise RecipeError(
            f"quantize.auto_size: {size!r}: is for the targets gguf:{AUTO} and onnx:{AUTO}"
        )
    types = recipe.quantize.auto_types
    if types and f"gguf:{AUTO}" not in recipe.targets:
        raise RecipeError(f"quantize.auto_types: {types!r}: is for the target gguf:{AUTO}")
    if not is_auto(spec):
        return
    if not has_texts(recipe):
        raise RecipeError(
            f"{spec} needs texts to find out what errors cost",
            hint="name texts with --train FILE (with --no-train for this alone) or "
            "--calibration-file FILE",
        )
    if split_target(spec)[0] != "gguf":
        return
    for is_so, says, what in (
        (recipe.prune.heads is not None, "of heads left out, which its files hold as zeros,",
         "prune.heads"),
        (recipe.prune.sparsity is not None, "of weights set to zero, which would not stay so,",
         "prune.sparsity"),
        (recipe.gguf.split_size_mb is not None, "over several files, whose headers it leaves out",
         "gguf.split_size_mb"),
        (recipe.gguf.converter is not None, "of a file that llama.cpp's own script writes",
         "gguf.converter"),
    ):  # fmt: skip
        if is_so:
            raise RecipeError(
                f"{spec} cannot be made {says.rstrip(',')}",
                hint=f"leave {what} out, or take a precision such as gguf:q8_0",
            )


class Floor(Pass):
    """Refuses sizes that are too small for sure, before anything is trained."""

    name = "floor"

    def inputs(self, context: Context) -> dict[str, Any] | None:
        return None

    def load(self, context: Context, folder: Path) -> None:
        from edgelm.compiler.tune import sizes

        recipe, stated = context.recipe, context.recipe.quantize.auto_size
        assert context.source is not None and stated is not None
        weights = sizes.count_weights(context.source.folder, recipe)
        own = bool(recipe.quantize.tensor_types)
        for spec in filter(is_auto, recipe.targets):
            least = sizes.floor_bytes(weights, spec, own_types=own)
            if parse_bytes("quantize.auto_size", stated) < least:
                raise RecipeError(
                    f"quantize.auto_size: {stated}: the weights of {spec} alone take at least "
                    f"{least:,} bytes",
                    hint="use a larger --auto-size, or make the model smaller: --trim-vocab, "
                    "--prune-layers",
                )


class Allocate(Pass):
    """Sets context.types[target]."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.name = f"allocate {target}"

    def inputs(self, context: Context) -> dict[str, Any] | None:
        return None

    def load(self, context: Context, folder: Path) -> None:
        table, quantize = context.tables[self.target], context.recipe.quantize
        assert quantize.auto_size is not None
        rows = _stated(table.rows, quantize) if self.target == "gguf" else table.rows
        items = [[(option.n_bytes, option.cost) for option in row.options] for row in rows]
        budget = parse_bytes("quantize.auto_size", quantize.auto_size) - table.rest_bytes
        if budget < least_bytes(items):
            least = least_bytes(items) + table.rest_bytes
            raise RecipeError(
                f"quantize.auto_size: {quantize.auto_size}: the smallest file of this model takes "
                f"{least:,} bytes",
                hint=f"use --auto-size {show_bytes(least)} or more, or make the model smaller",
            )
        chosen = [row.options[i] for row, i in zip(rows, solve(items, budget), strict=True)]
        context.types[self.target] = {row.name: o.kind for row, o in zip(rows, chosen, strict=True)}
        n_bytes = table.rest_bytes + sum(option.n_bytes for option in chosen)
        cost = sum(option.cost for option in chosen)
        counts = Counter(option.kind for option in chosen)
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        bits = 8 * sum(o.n_bytes for o in chosen) / sum(row.n_weights for row in rows)
        context.note(
            f"{self.target}-{AUTO}: {n_bytes:,} bytes, {bits:.2f} bits a weight of the matrices: "
            f"{kinds}; their costs add up to {cost:.2g}, which ranks types and foretells no loss"
        )


def _stated(rows: tuple[Row, ...], quantize: QuantizeConfig) -> tuple[Row, ...]:
    """The matrices in the types that the recipe leaves them. Raises RecipeError, ModelError."""
    from edgelm.targets.gguf.quantize import choose_types

    stated = choose_types(quantize.tensor_types, [row.name for row in rows])
    for name, kind in stated.items():
        rows = restricted(rows, name, kind)
    if not quantize.auto_types:
        return rows
    return tuple(row if row.name in stated else _only(row, quantize.auto_types) for row in rows)


def _only(row: Row, kinds: Sequence[str]) -> Row:
    """The matrix in some of its types. Raises RecipeError when none is left."""
    options = tuple(option for option in row.options if option.kind in kinds)
    if not options:
        had = ", ".join(option.kind for option in row.options)
        raise RecipeError(
            f"quantize.auto_types: none of {', '.join(kinds)} is for {row.name}",
            hint=f"that can be {had}",
        )
    return replace(row, options=options)
