"""How many physical cores this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgelm.runtime.cores import usable_cores


def physical_cores() -> int:
    """Physical cores among the CPUs the process may run on; logical ones where that is not told."""
    if sys.platform != "linux":
        return usable_cores()
    allowed = os.sched_getaffinity(0)
    cores: set[str] = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(path.read_text("ascii").strip())
        except OSError:
            return usable_cores()
    return min(len(cores) or 1, usable_cores())  # a quota may be less
