"""The table of targets. To add one: a folder with a TARGET object (see base.py), and one row."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgelm.runtime.errors import UsageError
from edgelm.runtime.schema import nearest

if TYPE_CHECKING:
    from edgelm.targets.base import Target

TARGETS = {
    "onnx": "edgelm.targets.onnx",
    "gguf": "edgelm.targets.gguf",
}


def get_target(name: str) -> Target:
    """The target of that name. Raises UsageError."""
    if name not in TARGETS:
        raise UsageError(
            f"unknown target {name!r}{nearest(name, TARGETS)}",
            hint=f"known targets: {', '.join(TARGETS)}",
        )
    return importlib.import_module(TARGETS[name]).TARGET
