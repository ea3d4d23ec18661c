"""Edgelm's own requirements, and which of its extras are installed: by metadata, nothing is loaded.

pyproject.toml is where they stand; an installed edgelm carries them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.runtime.floors import installed, is_older

_NAME = re.compile(r"\s*([A-Za-z0-9._-]+)(?:\[[^]]*\])?")
_FLOOR = re.compile(r">=\s*([0-9.]+)")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([A-Za-z0-9._-]+)""")
_PYTHON = re.compile(r"""\bpython_version\s*>=\s*['"](\d+)\.(\d+)""")


@dataclass(frozen=True)
class Need:
    """A package that edgelm, or one of its extras, needs."""

    package: str
    floor: str | None
    extra: str | None


@dataclass(frozen=True)
class Extra:
    """How much of an extra is here."""

    present: tuple[str, ...]  # `onnxruntime 1.32.0`
    missing: tuple[str, ...]
    old: tuple[str, ...]  # `onnx 1.20 (needs 1.21)`

    @property
    def is_whole(self) -> bool:
        return not self.missing and not self.old


def parse(
    requirements: Sequence[str], python: tuple[int, int] = sys.version_info[:2]
) -> list[Need]:
    """`onnx>=1.21; extra == "compile"` and the like, those of newer Pythons left out."""
    needs: list[Need] = []
    for line in requirements:
        what, _, marker = line.partition(";")
        name, since, extra = _NAME.match(what), _PYTHON.search(marker), _EXTRA.search(marker)
        if name is None or (since and python < (int(since[1]), int(since[2]))):
            continue
        floor = _FLOOR.search(what)
        needs.append(Need(name[1], floor and floor[1], extra and extra[1]))
    return needs


def own_needs() -> list[Need]:
    """Of the installed edgelm; none where it runs from a checkout that was not installed."""
    from importlib import metadata

    try:
        return parse(metadata.requires("edgelm") or [])
    except metadata.PackageNotFoundError:
        return []


def extras(needs: Sequence[Need]) -> dict[str | None, Extra]:
    """By name, in the order of pyproject.toml; None: what edgelm itself needs."""
    found: dict[str | None, Extra] = {}
    for name in dict.fromkeys(need.extra for need in needs):
        present: list[str] = []
        missing: list[str] = []
        old: list[str] = []
        for need in needs:
            if need.extra != name:
                continue
            package, version = installed(need.package)
            if not version:
                missing.append(need.package)
            elif need.floor is not None and is_older(version, need.floor):
                old.append(f"{package} {version} (needs {need.floor})")
            else:
                present.append(f"{package} {version}")
        found[name] = Extra(tuple(present), tuple(missing), tuple(old))
    return found
