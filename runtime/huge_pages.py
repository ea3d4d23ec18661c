"""Weights in huge pages, where the system is Linux and has them.

A token's pass reads all weights, and pages of 4 kB have to be looked up one by one on the way; of
pages of 2 MB there are few. Engines take their memory themselves, so it is found as what is new
among the process's mappings: `Growth` compares them before and after.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

Region = tuple[int, int]
"""Addresses of the first byte and behind the last."""

HUGE_BYTES = 1 << 21
_LEAST_BYTES = 4 * HUGE_BYTES  # of a region that is worth it
_MAPS = Path("/proc/self/maps")
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25


class Growth:
    """Memory that the process has taken since this was made."""

    def __init__(self) -> None:
        self._before = list(_mappings())

    def regions(self) -> list[Region]:
        """The large ones, in whole huge pages."""
        found: list[Region] = []
        for start, end in _mappings():
            for held_start, held_end in self._before:
                if held_end <= start or held_start >= end:
                    continue
                found.append((start, held_start))
                start = held_end
            found.append((start, end))
        whole = ((-(-s // HUGE_BYTES) * HUGE_BYTES, e // HUGE_BYTES * HUGE_BYTES) for s, e in found)
        return [(s, e) for s, e in whole if e - s >= _LEAST_BYTES]


def ask(regions: list[Region]) -> None:
    """What is not yet written to is to come in huge pages; a kernel without them says no."""
    for start, end in regions:
        _madvise(start, end - start, _MADV_HUGEPAGE)


def collapse(regions: list[Region]) -> None:
    """Move what is written into huge pages, as Linux 6.1 and later can."""
    for start, end in regions:
        # One by one: a page that cannot be moved stays, and others may take memory meanwhile.
        for page in range(start, end, HUGE_BYTES):
            _madvise(page, HUGE_BYTES, _MADV_COLLAPSE)


def _mappings() -> Iterator[Region]:
    """Writable memory without a file, in the order of addresses."""
    if sys.platform != "linux":
        return
    try:
        lines = _MAPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no /proc here
        return
    for line in lines:
        place, access, *rest = line.split()
        if access.startswith("rw") and (len(rest) == 3 or rest[-1] == "[heap]"):
            start, end = place.split("-")
            yield int(start, 16), int(end, 16)


def _madvise(start: int, n_bytes: int, advice: int) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise(start, n_bytes, advice)
