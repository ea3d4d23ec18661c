"""Which machine this is, as far as an engine's answers and speed depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine_id() -> list[str]:
    """Processor and its instructions, cores, system; equal on equal machines."""
    return [platform.machine(), platform.system(), str(os.cpu_count()), *_cpu()]


def cpu_has(flag: str) -> bool:
    """Whether Linux lists the processor's instruction set `flag`; False where it does not tell."""
    return flag in " ".join(_cpu()).split()


def _cpu() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return [platform.processor()]
    wanted = ("model name", "flags", "CPU part", "Features")
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    return sorted({line.partition(":")[2].strip() for line in lines})
