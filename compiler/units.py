"""Sizes and times as people write them: `8MB`, `3ms`, `60m`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from edgelm.runtime.errors import RecipeError

BYTES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
LATENCY = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds
TIME = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}  # in seconds
_WRITTEN = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-zµ]*)\s*", re.IGNORECASE)


def parse(key: str, text: str, units: Mapping[str, float]) -> float:
    """`8MB` -> 8e6 with BYTES. Units in whatever case. Raises RecipeError, which names `key`."""
    known = ", ".join(units)
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise RecipeError(f"{key}: {text!r}: is no number with a unit", hint=f"units: {known}")
    number, unit = float(found[1]), found[2].lower()
    if unit not in units:
        what = f"unknown unit {found[2]!r}" if unit else "a unit is needed"
        raise RecipeError(f"{key}: {text!r}: {what}", hint=f"units: {known}")
    if not 0 < number < math.inf:
        raise RecipeError(f"{key}: {text!r}: must be over 0")
    return number * units[unit]


def parse_bytes(key: str, text: str) -> int:
    """`8MB` -> 8,000,000. Raises RecipeError."""
    return round(parse(key, text, BYTES))


def show_bytes(n_bytes: int) -> str:
    """In a unit that reads well, rounded up: the size shown is enough."""
    for unit in ("GB", "MB", "kB"):
        size = BYTES[unit.lower()]
        if n_bytes >= size:
            return f"{-(-n_bytes * 100 // size) / 100:.2f}{unit}"
    return f"{n_bytes}B"
