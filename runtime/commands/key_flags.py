"""Flags of private keys. A passphrase never stands in a command line, which others can see."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def passphrase_flags(prefix: str = "") -> Callable[[F], F]:
    """`--passphrase-file` and `--passphrase-env`, `prefix` before each."""

    def decorate(function: F) -> F:
        name = prefix.replace("-", "_")
        function = click.option(
            f"--{prefix}passphrase-env",
            f"{name}passphrase_env",
            help="Environment variable that holds the passphrase of the private key.",
        )(function)
        return click.option(
            f"--{prefix}passphrase-file",
            f"{name}passphrase_file",
            type=click.Path(path_type=Path),
            help="File whose first line is the passphrase of the private key.",
        )(function)

    return decorate


def passphrase(file: Path | None, variable: str | None) -> bytes | None:
    """The passphrase that the flags lead to. Raises UsageError."""
    from edgelm.runtime.errors import UsageError

    if file is not None and variable is not None:
        raise UsageError("give the passphrase by a file or by a variable, not by both")
    if file is not None:
        try:
            found = (file.read_bytes().splitlines() or [b""])[0]
        except OSError as err:
            raise UsageError(f"{file}: cannot be read: {err.strerror or err}") from err
    elif variable is not None:
        found = os.environ.get(variable, "").encode()
    else:
        return None
    if not found:
        raise UsageError(f"{file or variable}: it holds no passphrase")
    return found
