"""GenerateOptions as flags of a command."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin

import click

from edgelm.runtime.generate.options import GenerateOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def generate_flags(*left_out: str) -> Callable[[Command], Command]:
    """Add a flag for each option; those that are not given are not passed on as values."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(GenerateOptions)
        for f in reversed(fields(GenerateOptions)):
            if f.name not in left_out:
                flag = f"--{f.name.replace('_', '-')}"
                help = f.metadata["help"]
                click.option(flag, f.name, **_kind(hints[f.name]), help=help)(command)
        return command

    return decorate


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value not in (None, ())}


def speculates(flags: dict[str, Any]) -> bool:
    """Whether the flags ask for guessed tokens, which a model is loaded for."""
    return flags.get("speculate") not in (None, "off")


def _kind(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is tuple:
        return {"multiple": True}
    if get_origin(hint) is typing.Literal:
        return {"type": click.Choice(get_args(hint))}
    (scalar,) = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return {"type": scalar}
