"""allocate: the type of each matrix of gguf:auto, the least cost within the size asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.compiler.allocate.knapsack import least_bytes, solve
from edgelm.compiler.context import Context
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.imatrix import has_texts
from edgelm.compiler.passes.sensitivity import Errors, Sensitivity
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.units import parse_bytes, show_bytes
from edgelm.runtime.errors import RecipeError
from edgelm.targets.gguf.precisions import AUTO

if TYPE_CHECKING:
    from edgelm.targets.gguf.rounding.table import Row

SPEC = f"gguf:{AUTO}"


def allocate_passes(spec: str) -> list[Pass]:
    """The passes, where the variant needs them."""
    return [Sensitivity(), Errors(), Allocate()] if spec == SPEC else []


def check_auto(recipe: Recipe, spec: str) -> None:
    """Raise RecipeError for what would fail after the training."""
    size = recipe.quantize.auto_size
    if size is not None and SPEC not in recipe.targets:
        raise RecipeError(f"quantize.auto_size: {size!r}: is for the target {SPEC}")
    if spec != SPEC:
        return
    if not has_texts(recipe):
        raise RecipeError(
            f"{SPEC} needs texts to find out what errors cost",
            hint="name texts with --train FILE (with --no-train for this alone) or "
            "--calibration-file FILE",
        )
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
                f"{SPEC} cannot be made {says.rstrip(',')}",
                hint=f"leave {what} out, or take a precision such as gguf:q8_0",
            )


class Allocate(Pass):
    """Sets context.types."""

    name = "allocate"

    def inputs(self, context: Context) -> dict[str, Any] | None:
        return None

    def load(self, context: Context, folder: Path) -> None:
        from edgelm.targets.gguf.quantize import choose_types
        from edgelm.targets.gguf.rounding.table import restricted

        table, quantize = context.table, context.recipe.quantize
        assert table is not None and quantize.auto_size is not None
        rows = table.rows
        stated = choose_types(quantize.tensor_types, [row.name for row in rows])
        for name, kind in stated.items():
            rows = restricted(rows, name, kind)
        if quantize.auto_types:
            rows = tuple(
                row if row.name in stated else _only(row, quantize.auto_types) for row in rows
            )
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
        context.types = {row.name: o.kind for row, o in zip(rows, chosen, strict=True)}
        n_bytes = table.rest_bytes + sum(option.n_bytes for option in chosen)
        counts = Counter(option.kind for option in chosen)
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        bits = 8 * sum(o.n_bytes for o in chosen) / sum(row.n_weights for row in rows)
        context.note(
            f"gguf-{AUTO}: {n_bytes:,} bytes, {bits:.2f} bits a weight of the matrices: {kinds}; "
            f"expected to lose {sum(option.cost for option in chosen):.2g} of the task's divergence"
        )


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
