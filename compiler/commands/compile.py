"""edgelm compile"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgelm.compiler.options import Leaf, choices, leaves, scalar
from edgelm.compiler.recipe import Recipe, load_recipe
from edgelm.runtime.commands.key_flags import passphrase, passphrase_flags
from edgelm.runtime.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])
SHORT = {"output": "-o"}


def recipe_options(function: F) -> F:
    """Give a click command one option for every leaf of the recipe's class tree."""
    for leaf in reversed(list(leaves(Recipe))):
        if leaf.key != "model" and not leaf.is_mapping:
            function = _option(leaf)(function)
    return function


def _option(leaf: Leaf) -> Callable[[F], F]:
    names = [leaf.key.replace(".", "__"), leaf.flag]
    if leaf.key in SHORT:
        names.append(SHORT[leaf.key])
    default = leaf.default
    shown = default if default not in (None, [], False) else None
    if isinstance(shown, list):
        shown = " ".join(shown)
    kwargs: dict[str, Any] = {"help": leaf.help, "default": None, "show_default": False}
    if shown is not None:
        kwargs["help"] += f"  [default: {shown}]"
    kind = scalar(leaf.type)
    if kind is bool:
        names[1] = f"{leaf.flag}/--no-{leaf.flag[2:]}" if default is not False else leaf.flag
        return click.option(*names, is_flag=True, **kwargs)
    words = choices(leaf.type)
    return click.option(
        *names, type=click.Choice(words) if words else kind, multiple=leaf.many, **kwargs
    )


@click.command(name="compile")
@click.argument("model_or_recipe")
@recipe_options
@click.option("--no-train", is_flag=True, help="Compile the model as it is.")
@click.option("--sign-key", type=click.Path(path_type=Path), help="Sign with this private key.")
@passphrase_flags("sign-")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--log-json", is_flag=True, help="Progress as JSON lines on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def command(
    model_or_recipe: str,
    no_train: bool,
    sign_key: Path | None,
    sign_passphrase_file: Path | None,
    sign_passphrase_env: str | None,
    as_json: bool,
    log_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Compile MODEL_OR_RECIPE into a verified bundle.

    It is a model (a Hugging Face directory, a .gguf file, a hub id, or pkg:PACKAGE/PATH) or a
    recipe (a .yaml file); options go over what a recipe says.
    """
    from edgelm.compiler.pipeline import compile

    recipe = recipe_from(model_or_recipe, flags, no_train)
    progress = Progress("json" if log_json else "quiet" if quiet else "auto")
    sign = None
    if sign_key is not None:
        from edgelm.runtime.trust.keys import load_signing_key

        sign = load_signing_key(sign_key, passphrase(sign_passphrase_file, sign_passphrase_env))
    result = compile(recipe, progress, sign)
    if as_json:
        click.echo(json.dumps(json.loads(result.manifest.to_json()), ensure_ascii=False))
        return
    from edgelm.runtime.table import variants_table

    click.echo(variants_table(result.manifest))
    click.echo(f"\nbundle  {result.path}\nreport  {result.report_path}")


def recipe_from(model_or_recipe: str, flags: dict[str, Any], no_train: bool) -> Recipe:
    """The recipe that a command line states."""
    overrides = {
        key.replace("__", "."): list(value) if isinstance(value, tuple) else value
        for key, value in flags.items()
        if value is not None and value != ()
    }
    if no_train:
        overrides["train.method"] = "none"
    if model_or_recipe.endswith((".yaml", ".yml")):
        return load_recipe(Path(model_or_recipe), overrides)
    return load_recipe(None, {"model": model_or_recipe, **overrides})
