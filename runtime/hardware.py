"""The processor's instructions and the machine's memory, as the system tells them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgelm.runtime.cgroup import read_limits

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Feature:
    """Instructions that an engine has kernels for: each of `names` is one system's word for it."""

    title: str
    names: tuple[str, ...]


# In Linux's words, then macOS's.
FEATURES = {
    "x86": (
        Feature("AVX2", ("avx2",)),
        Feature("AVX-512", ("avx512bw",)),
        Feature("VNNI", ("avx512_vnni", "avx_vnni", "avx512vnni")),
        Feature("AVX-512 BF16", ("avx512_bf16",)),
        Feature("AMX", ("amx_int8",)),
    ),
    "arm": (
        Feature("NEON", ("asimd", "advsimd")),
        Feature("dot product", ("asimddp", "feat_dotprod")),
        Feature("int8 matrices", ("i8mm", "feat_i8mm")),
        Feature("half floats", ("asimdhp", "feat_fp16")),
        Feature("bf16", ("bf16", "feat_bf16")),
    ),
}
# The products of bytes that 8-bit and smaller precisions live on.
BYTE_PRODUCTS = {"x86": "VNNI", "arm": "dot product"}


def family(machine: str) -> str | None:
    """x86 or arm, of what `platform.machine()` says; None for others."""
    name = machine.lower()
    if name in ("x86_64", "amd64", "i386", "i686"):
        return "x86"
    return "arm" if name.startswith(("arm", "aarch64")) else None


def features(machine: str, flags: frozenset[str]) -> dict[str, bool]:
    """Title of each feature of the processor's family -> whether it is there."""
    known = FEATURES.get(family(machine) or "", ())
    return {f.title: not flags.isdisjoint(f.names) for f in known}


def cpu_flags() -> frozenset[str]:
    """The processor's instructions in the system's words; empty where it does not tell."""
    try:
        if sys.platform == "linux":
            return flags_of_linux(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if sys.platform == "darwin":
            asked = ["/usr/sbin/sysctl", "hw.optional", "machdep.cpu"]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
            return flags_of_macos(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return frozenset()


def flags_of_linux(cpuinfo: str) -> frozenset[str]:
    """Of the first processor in /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def flags_of_macos(sysctl: str) -> frozenset[str]:
    """`hw.optional.arm.FEAT_DotProd: 1` and `machdep.cpu.leaf7_features: AVX2 …`, lower case."""
    found: set[str] = set()
    for line in sysctl.lower().splitlines():
        key, _, value = line.partition(":")
        if key.startswith("hw.optional") and value.strip() == "1":
            found.add(key.rpartition(".")[2])
        elif key.endswith("features"):
            found.update(value.split())
    return frozenset(found)


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell."""

    total: int | None
    available: int | None  # without swapping, caches of files given back
    limit: int | None  # of the control group


def memory() -> Memory:
    """Of this machine and this process's group."""
    limit = read_limits().memory_bytes
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {
            key: int(rest.split()[0]) * 1024 for key, _, rest in (x.partition(":") for x in lines)
        }
        return Memory(facts.get("MemTotal"), facts.get("MemAvailable"), limit)
    except (OSError, ValueError):  # not Linux
        pass
    try:
        return Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None, limit)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return Memory(None, None, limit)


def huge_pages(path: Path = HUGE_PAGES) -> str | None:
    """Linux's transparent huge pages: always, madvise or never; None where there are none."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def nvidia_driver(path: Path = NVIDIA) -> str | None:
    """What the NVIDIA driver says of itself, on Linux; None where none is loaded."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return lines[0].partition(":")[2].strip() if lines else None
