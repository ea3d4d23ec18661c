"""Which machine this is, as far as an engine's answers and speed depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

from edgelm.compiler.cache import digest
from edgelm.runtime.cores import usable_cores


def machine_id() -> list[str]:
    """Processor and its instructions, cores, system; equal on equal machines."""
    return [platform.machine(), platform.system(), str(usable_cores()), *_cpu()]


def machine_name() -> str:
    """`x86_64 Linux, 8 cores, 3f2a9c01`: equal on equal machines, and only there."""
    system, cores = machine_id()[:2], machine_id()[2]
    return f"{' '.join(system)}, {cores} cores, {digest(machine_id())[:8]}"


def _cpu() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return [platform.processor()]
    wanted = ("model name", "flags", "CPU part", "Features")
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    return sorted({line.partition(":")[2].strip() for line in lines})
