"""A program of another project's, run by this interpreter in a process of its own.

Such a program prints what it does, sets up the root logger and changes sys.path; it may fetch what
it misses from a hub. None of that is to happen in the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    lines: tuple[str, ...]  # what it printed, both streams together; never empty where it failed


def run_python(arguments: Sequence[str], environment: Mapping[str, str], stdin: str = "") -> Ended:
    """Run this interpreter with `arguments` in an empty folder, where Python finds no modules.

    `environment` is added to this process's own."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=scratch,
            env={**os.environ, **_OFFLINE, **environment},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    lines = tuple(done.stdout.strip().splitlines())
    if not lines and done.returncode != 0:
        lines = (f"it ended with code {done.returncode}",)
    return Ended(done.returncode, lines)
