"""The option --device, which several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgelm.runtime.engine import DEVICES, GPU_DEVICES, Device, split_device
from edgelm.runtime.errors import UsageError


def device_option(default: Device = "auto") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--device`, handed to the command as `device`."""
    numbered = " and ".join(f"{kind}:1" for kind in GPU_DEVICES)
    return click.option(
        "--device",
        metavar=f"[{'|'.join(DEVICES)}]",
        default=default,
        show_default=True,
        callback=_check,
        help=f"Where the engine runs; {numbered} and so on of several GPUs.",
    )


def _check(_ctx: click.Context, param: click.Parameter, value: Device) -> Device:
    try:
        split_device(value)
    except UsageError as err:
        raise click.BadParameter(f"{err.message}; {err.hint}", param=param) from err
    return value
