"""The compiler: model + data + recipe -> bundle. Needs the extra `compile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.compiler.pipeline import BundleReport, compile
    from edgelm.compiler.recipe import Recipe, load_recipe

__all__ = ["BundleReport", "Recipe", "compile", "load_recipe"]


def __getattr__(name: str) -> Any:
    if name in ("Recipe", "load_recipe"):
        from edgelm.compiler import recipe

        return getattr(recipe, name)
    if name in ("BundleReport", "compile"):
        import importlib

        return getattr(importlib.import_module("edgelm.compiler.pipeline"), name)
    raise AttributeError(f"module 'edgelm.compiler' has no attribute {name!r}")
