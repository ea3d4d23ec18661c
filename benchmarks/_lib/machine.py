"""What a figure was measured on: machine, versions, commit, date. No names, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHANGED = " with local changes"
FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def n_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu() -> str:
    """Model and the instructions that matter here."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return name
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = facts.get("model name", name)
    ids = [facts[k] for k in ("cpu family", "model") if k in facts]
    if ids:
        name += f" (family {', model '.join(ids)})"
    has = facts.get("flags", facts.get("Features", "")).split()
    flags = ", ".join(flag for flag in FLAGS if flag in has)
    return f"{name}; {flags}" if flags else name


def memory_gb() -> float | None:
    """Installed memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return None


def load_average() -> float | None:
    """Of the last minute; over a tenth of the cores something else is running."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def versions(packages: Sequence[str]) -> str:
    """`torch 2.13.0, …` of this environment; what is not installed is left out."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str:
    """The commit, marked when tracked files outside RESULTS.md differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    changed = [
        line
        for line in git("status", "--porcelain", "--untracked-files=no").splitlines()
        if not line.endswith("benchmarks/RESULTS.md")
    ]
    return (head or "unknown") + (CHANGED if changed else "")


def describe(packages: Sequence[str], peers: Sequence[str], load: float | None) -> str:
    """The lines that stand over every table."""
    memory = memory_gb()
    machine = f"{cpu()}; {n_cores()} cores" + (f", {memory:.0f} GB" if memory else "")
    lines = [
        f"- machine: {machine}; {platform.system()} {platform.machine()}",
        f"- edgelm's environment: {versions(packages)}",
        *[f"- {peer}" for peer in peers],
        f"- commit {commit()}; {datetime.date.today().isoformat()}"
        + (f"; load average before the run {load:.2f}" if load is not None else ""),
    ]
    return "\n".join(lines)


def warn_if_busy() -> float | None:
    """The load average, with a word on stderr where it makes times worthless."""
    load = load_average()
    if load is not None and load > 0.3 * n_cores():
        sys.stderr.write(
            f"warning: load average {load:.2f} on {n_cores()} cores: times will be worthless\n"
        )
    return load
