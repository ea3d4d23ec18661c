"""The table of targets. To add one: a folder with a TARGET object (see base.py), and one row."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgelm.runtime.errors import UsageError
from edgelm.runtime.schema import nearest
from edgelm.targets.precision import find

if TYPE_CHECKING:
    from edgelm.targets.base import Target
    from edgelm.targets.precision import Grade, Precision

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


def precision_of(target: str, name: str) -> Precision:
    """The row of `target:name`. Raises UsageError."""
    found = get_target(target)
    row = find(found.precisions, name)
    if row is None:
        known = [row.name for row in found.precisions]
        raise UsageError(
            f"{target} has no precision {name!r}{nearest(name, known)}",
            hint=f"{target} has {', '.join(known)}",
        )
    return row


def grade_of(target: str, name: str) -> Grade | None:
    """How close files of `target:name` come to the model; None where this version cannot tell."""
    row = find(get_target(target).precisions, name) if target in TARGETS else None
    return None if row is None else row.grade


def all_precisions() -> Iterator[tuple[str, Precision]]:
    """`TARGET:PRECISION` and the row of each precision of each target."""
    for target in TARGETS:
        for row in get_target(target).precisions:
            yield f"{target}:{row.name}", row
