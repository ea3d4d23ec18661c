"""How many cores this process may use."""

from __future__ import annotations

import math
import os
import sys

from edgelm.runtime.cgroup import read_limits


def usable_cores() -> int:
    """Logical processors that the process may run on, at most as many as its quota of time."""
    allowed = allowed_cores()
    quota = read_limits().cpus if sys.platform == "linux" else None
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def allowed_cores() -> int:
    """Logical processors that the process may run on, whatever its quota."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
