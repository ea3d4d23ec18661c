"""Flags of whom to trust: of `predict`, `chat`, `eval` and `verify`; `serve` has its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgelm.runtime.trust.policy import NO_TRUST, POLICIES, Policy, Trust


def trust_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags; the command is called with `trust`."""

    @click.option(
        "--trust-key",
        "--key",
        "trust_keys",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A public key or root certificate that must have signed the bundle; may be repeated.",
    )
    @click.option(
        "--trust",
        "policy",
        type=click.Choice(POLICIES),
        help="What to do with bundles of other makers: refuse them (required, the default with a "
        "key), warn, or look at no signature (none, the default without).",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, trust_keys: tuple[Path, ...], policy: Policy | None, **rest: Any
    ) -> None:
        if policy is None and not trust_keys:
            trust = NO_TRUST
        else:
            trust = Trust(trust_keys, policy or "required")
        command(*args, trust=trust, **rest)

    return wrapped
