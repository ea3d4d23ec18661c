"""What a container or service may use of the machine, as Linux's control groups say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 62  # what version 1 says, rounded down to pages, where there is none


@dataclass(frozen=True)
class Limits:
    """None where there is no limit."""

    cpus: float | None = None  # processors' worth of time
    memory_bytes: int | None = None


def read_limits(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> Limits:
    """The tightest limits of this process's groups and of those that hold them."""
    cpus: list[float] = []
    memory: list[int] = []
    for controllers, folder in _folders(membership, mount):
        if not controllers:  # version 2: one tree for all
            quota, period = (*_numbers(folder / "cpu.max"), None, None)[:2]
            memory += _numbers(folder / "memory.max")[:1]
        else:
            quota = next(iter(_numbers(folder / "cpu.cfs_quota_us")), None)
            period = next(iter(_numbers(folder / "cpu.cfs_period_us")), None)
            memory += _numbers(folder / "memory.limit_in_bytes")[:1]
        if quota and period:
            cpus.append(quota / period)
    real = [size for size in memory if size < _NO_LIMIT]
    return Limits(min(cpus, default=None), min(real, default=None))


def _folders(membership: Path, mount: Path) -> Iterator[tuple[str, Path]]:
    """Controllers and folder of each group that holds this process, up to the mounts' roots."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        names = controllers.split(",")
        if controllers and not {"cpu", "memory"} & set(names):
            continue
        root = mount / controllers if controllers else mount
        if controllers and not root.is_dir():
            root = next((mount / name for name in names if (mount / name).is_dir()), root)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield controllers, root.joinpath(*parts[:depth])


def _numbers(path: Path) -> list[int]:
    """The file's whole numbers over 0; `max 100000`, which is no limit, has none."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
    if not all(word.isdecimal() for word in words):
        return []
    return [int(word) for word in words]
