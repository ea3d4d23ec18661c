"""Contenders in processes of their own, timed in turns: A B C A B C …

A worker loads and warms up once, says so in a JSON line, and then answers each line on its stdin
with one JSON line. Whoever drives it therefore decides what runs when, and only one runs at a time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

WORKERS = Path(__file__).resolve().parents[1] / "workers"
_ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".envs"
PEER_PYTHON = _ENVIRONMENTS / "optimum" / "bin" / "python"
OPENVINO_PYTHON = _ENVIRONMENTS / "openvino" / "bin" / "python"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore",
}

Told = dict[str, Any]  # one answer of a worker


def need_peers(*pythons: Path) -> None:
    """End the run unless the peers are set up; optimum-onnx where none is named."""
    if not all(python.exists() for python in pythons or (PEER_PYTHON,)):
        raise SystemExit("error: the peers are not set up\nhint: run benchmarks/setup_peers")


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment, quiet, offline, and with so many threads for every library."""
    result = {**os.environ, **QUIET}
    result.pop("PYTHONPATH", None)
    result.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            result[name] = str(threads)
    return result


class Worker:
    """`python workers/SCRIPT JSON-OF-OPTIONS`, loaded and waiting."""

    def __init__(
        self,
        name: str,
        script: str,
        options: Mapping[str, Any],
        *,
        python: str | Path = sys.executable,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / script), json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(threads),
        )
        self.ready = self._answer()

    def ask(self, **question: Any) -> Told:
        """Let it do its work once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Told:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read()[-3000:]
        raise RuntimeError(f"{self.name}: ended with exit code {code}\n{tail}")

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 2) -> str:
        """`2.10 (2.04-2.20)`"""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


class Timed(Protocol):
    """What is run in turns; `ask` gives the `seconds` it took."""

    @property
    def name(self) -> str: ...

    def ask(self) -> Told: ...


@dataclass(frozen=True)
class Contender:
    """A worker and what it is asked each round."""

    name: str
    worker: Worker
    question: dict[str, Any]

    def ask(self) -> Told:
        """One round's answer."""
        return self.worker.ask(**self.question)


def run_rounds(workers: Sequence[Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each worker in each round."""
    seconds: dict[str, list[float]] = {w.name: [] for w in workers}
    for i in range(rounds):
        for worker in workers:
            seconds[worker.name].append(float(worker.ask()["seconds"]))
        shown = ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        sys.stderr.write(f"round {i + 1}/{rounds}: {shown}\n")
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Round by round, so that what slows a whole round down cancels."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
