"""Sizes as people write them: 90MB, 1.5GB, 800000. A MB is a million bytes."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
SAYS = "must be a size like 90MB, of B, KB, MB or GB (powers of 1000)"


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError for what is no size above 0."""
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].upper()) if found else None
    n_bytes = 0 if found is None or unit is None else int(float(found[1]) * unit)
    if n_bytes < 1:
        raise ValueError(f"{text!r}: {SAYS}")
    return n_bytes


def show_size(n_bytes: int) -> str:
    """In a unit that reads well, rounded up: the size shown is enough."""
    unit = next(u for u in ("GB", "MB", "KB", "B") if n_bytes >= _UNITS[u] or u == "B")
    if unit == "B":
        return f"{n_bytes}B"
    hundredths = -(-n_bytes * 100 // _UNITS[unit])
    return f"{hundredths / 100:.2f}{unit}"
