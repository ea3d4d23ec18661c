"""What on this machine keeps edgelm from running, slows it down, or makes it unsafe, with the fix.

Each `check_*` judges facts that it is handed; `examine` collects the facts. No engine is loaded.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.runtime import hardware
from edgelm.runtime.cgroup import read_limits
from edgelm.runtime.cores import allowed_cores
from edgelm.runtime.extras import Extra, extras, own_needs
from edgelm.runtime.files import cache_home
from edgelm.runtime.floors import SECURITY_FLOORS, installed, is_older, version_of
from edgelm.runtime.hardware import Memory

Level = Literal["ok", "advice", "wrong"]
CPU_BUILD, GPU_BUILD = "onnxruntime", "onnxruntime-gpu"  # both bring the same folder
ENGINES = {CPU_BUILD: "onnx", GPU_BUILD: "onnx", "llama-cpp-python": "gguf"}  # -> extra
_MB, _GB = 10**6, 10**9
# A small classifier takes 100 MB; a compile of a small encoder some GB, on the disk too.
LEAST_MEMORY_BYTES, USUAL_MEMORY_BYTES = 256 * _MB, 2 * _GB
LEAST_DISK_BYTES, USUAL_DISK_BYTES = 200 * _MB, 5 * _GB


@dataclass(frozen=True)
class Finding:
    """What was looked at. `wrong`: it fails or is unsafe; `advice`: it could be better."""

    area: str
    level: Level
    found: str
    fix: str | None = None


def examine() -> list[Finding]:
    """Look at everything."""
    engines = {package: version_of(package) for package in ENGINES}
    return [
        *check_engines(engines),
        *check_versions(dict(installed(package) for package in SECURITY_FLOORS)),
        *check_extras(extras(own_needs())),
        *check_gpu(hardware.nvidia_driver(), engines[GPU_BUILD]),
        *check_cpu(platform.machine(), hardware.cpu_flags()),
        *check_threads(os.cpu_count() or 1, allowed_cores(), read_limits().cpus),
        *check_memory(hardware.memory()),
        *check_huge_pages(hardware.huge_pages()),
        *check_disk(cache_home()),
    ]


def check_engines(versions: Mapping[str, str]) -> list[Finding]:
    """Of ENGINES, empty where one is not installed."""
    if versions[CPU_BUILD] and versions[GPU_BUILD]:
        return [
            Finding(
                "engines",
                "wrong",
                f"{CPU_BUILD} and {GPU_BUILD} overwrite each other's files",
                f"pip uninstall -y {CPU_BUILD} {GPU_BUILD} && pip install {GPU_BUILD}",
            )
        ]
    found = [f"{package} {version}" for package, version in versions.items() if version]
    if not found:
        fix = 'pip install "edgelm[onnx]", or "edgelm[gguf]"'
        return [Finding("engines", "wrong", "no engine is installed: no bundle can be run", fix)]
    return [Finding("engines", "ok", ", ".join(found))]


def check_versions(versions: Mapping[str, str]) -> list[Finding]:
    """Distributions of SECURITY_FLOORS, under whichever name they came."""
    found: list[Finding] = []
    for package, (floor, why) in SECURITY_FLOORS.items():
        for name in (package, GPU_BUILD) if package == CPU_BUILD else (package,):
            if is_older(versions.get(name, ""), floor):
                said = f"{name} {versions[name]} is unsafe: before {floor} {why}"
                found.append(
                    Finding("security", "wrong", said, f'pip install -U "{name}>={floor}"')
                )
    return found or [Finding("security", "ok", "no package of a version that is known as unsafe")]


def check_extras(found: Mapping[str | None, Extra]) -> list[Finding]:
    """Of edgelm itself (None) and of its extras."""
    if not found:
        said = "not known: edgelm is not installed, it runs from a checkout"
        return [Finding("extras", "ok", said)]
    made: list[Finding] = []
    absent: list[str] = []
    for name, extra in found.items():
        fix = f'pip install -U "edgelm[{name}]"' if name else "pip install -U edgelm"
        title = f"extra {name}" if name else "edgelm"
        lacks = [*(f"{package} is missing" for package in extra.missing), *extra.old]
        if extra.is_whole:
            made.append(Finding(title, "ok", ", ".join(extra.present)))
        elif extra.old or name is None:
            made.append(Finding(title, "wrong", ", ".join(lacks), fix))
        elif extra.present and len(extra.missing) < len(extra.present):
            made.append(Finding(title, "advice", ", ".join(lacks), fix))
        else:
            absent.append(name)
    if absent:
        fix = f'pip install "edgelm[{absent[0]}]"'
        said = f"not installed: {', '.join(absent)} (any of them by: {fix})"
        made.append(Finding("extras", "ok", said))
    return made


def check_gpu(driver: str | None, gpu_version: str) -> list[Finding]:
    """`driver`: what NVIDIA's says of itself."""
    if driver is None:
        return []
    if gpu_version:
        return [Finding("gpu", "ok", driver)]
    fix = f"pip uninstall -y {CPU_BUILD} && pip install {GPU_BUILD}"
    said = f"{driver}; no ONNX Runtime that can use it"
    return [Finding("gpu", "advice", said, fix)]


def check_cpu(machine: str, flags: frozenset[str]) -> list[Finding]:
    """`machine` as `platform.machine()` says it, `flags` in the system's words."""
    found = hardware.features(machine, flags)
    if not found or not flags:
        return [Finding("cpu", "ok", f"{machine}; its instructions are not told here")]
    has = [title for title, there in found.items() if there]
    lacks = [title for title, there in found.items() if not there]
    said = f"{machine} with {', '.join(has) or 'none of what engines look for'}"
    if lacks:
        said += f"; without {', '.join(lacks)}"
    family = hardware.family(machine) or ""
    wanted = hardware.BYTE_PRODUCTS[family]
    if family == "x86" and not found["AVX2"]:
        fix = "run on a processor since 2013, or let the virtual machine pass the host's on"
        return [Finding("cpu", "advice", f"{said}: every engine is several times slower", fix)]
    if not found[wanted]:
        fix = "compare the variants here: edgelm bench BUNDLE"
        return [Finding("cpu", "advice", f"{said}: 8-bit variants gain less than elsewhere", fix)]
    return [Finding("cpu", "ok", said)]


def check_threads(n_cpus: int, allowed: int, quota: float | None) -> list[Finding]:
    """Processors of the machine, those that the process may run on, and their worth of time."""
    said = f"{allowed} of {n_cpus} processors"
    if quota is None or quota >= allowed:
        return [Finding("threads", "ok", said)]
    said += f", but the time of {quota:g}: engines start {max(1, math.ceil(quota))} threads"
    if quota == int(quota):
        return [Finding("threads", "ok", said)]
    fix = "give the container whole processors, as with --cpus 2, or --cpuset-cpus 0,1"
    return [Finding("threads", "advice", f"{said}, which are held back at times", fix)]


def check_memory(memory: Memory) -> list[Finding]:
    """Total, available, and the group's limit."""
    sizes = [size for size in (memory.available, memory.limit) if size is not None]
    if not sizes:
        sizes = [] if memory.total is None else [memory.total]
    if not sizes:
        return [Finding("memory", "ok", "not told here")]
    parts = [
        f"{size / _GB:.1f} GB {what}"
        for size, what in (
            (memory.available, "available"),
            (memory.total, "in all"),
            (memory.limit, "is this process's limit"),
        )
        if size is not None
    ]
    said, least = ", ".join(parts), min(sizes)
    fix = "end other programs, or raise the container's limit, as with --memory 2g"
    if least < LEAST_MEMORY_BYTES:
        return [Finding("memory", "wrong", f"{said}: too little for most models", fix)]
    if least < USUAL_MEMORY_BYTES:
        said += ": enough for encoders, little for chat models and compiling"
        return [Finding("memory", "advice", said, fix)]
    return [Finding("memory", "ok", said)]


def check_huge_pages(state: str | None) -> list[Finding]:
    """Linux's transparent huge pages: always, madvise or never."""
    if state is None:
        return []
    if state != "never":
        return [Finding("huge pages", "ok", state)]
    path = hardware.HUGE_PAGES
    fix = f"echo madvise | sudo tee {path}"
    said = "never: answers of quantized GGUF models, which ask for them, grow slower"
    return [Finding("huge pages", "advice", said, fix)]


def check_disk(cache: Path) -> list[Finding]:
    """Room where compiles keep their stages; the folder need not be there yet."""
    place = next((p for p in (cache, *cache.parents) if p.is_dir()), cache)
    fix = "make room, or name another place: edgelm compile --cache-dir DIR, or XDG_CACHE_HOME"
    try:
        free = shutil.disk_usage(place).free
    except OSError as err:
        return [Finding("disk", "wrong", f"{cache}: {err.strerror or err}", fix)]
    said = f"{free / _GB:.1f} GB free for {cache}"
    if not os.access(place, os.W_OK):
        return [Finding("disk", "advice", f"{said}, which cannot be written to", fix)]
    if free < LEAST_DISK_BYTES:
        return [Finding("disk", "wrong", f"{said}: no model can be compiled", fix)]
    if free < USUAL_DISK_BYTES:
        return [Finding("disk", "advice", f"{said}: a compile may take several GB", fix)]
    return [Finding("disk", "ok", said)]
