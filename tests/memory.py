"""What Linux says about this process's memory."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path


def facts(mapped: mmap.mmap, offset: int = 0) -> dict[str, list[str]]:
    """Name -> words, of /proc/self/smaps, for the mapping that holds this byte."""
    address = address_of(mapped) + offset
    inside = False
    found: dict[str, list[str]] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *words = line.split()
        if "-" in head and not head.endswith(":"):
            start, end = (int(x, 16) for x in head.split("-"))
            inside = start <= address < end
        elif inside:
            found[head.removesuffix(":")] = words
    return found


def address_of(mapped: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(mapped)
    address = ctypes.addressof(view)
    del view  # or the mapping could not be closed
    return address
