"""The recipe's `gguf.converter`: which script that is, and what decides the files it writes."""

from __future__ import annotations

from pathlib import Path

from edgelm.compiler.hf import versions
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import RecipeError
from edgelm.targets.gguf.convert import SCRIPT, digest, find_script


def converter_of(recipe: Recipe) -> Path | None:
    """The script that the recipe names, if any. Raises RecipeError where there is none."""
    stated = recipe.gguf.converter
    if stated is None:
        return None
    script = find_script(Path(stated))
    if script is None:
        raise RecipeError(
            f"gguf.converter: {stated!r}: no such file, nor a folder with {SCRIPT} in it",
            hint="name a checkout of llama.cpp, or the script in it",
        )
    return script


def converter_inputs(recipe: Recipe) -> dict[str, object] | None:
    """What decides the file that the script writes; None where edgelm writes it."""
    script = converter_of(recipe)
    if script is None:
        return None
    packages = versions("torch", "transformers", "tokenizers", "numpy")
    return {"files": digest(script), "packages": packages}
