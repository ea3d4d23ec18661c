"""Latency, throughput and memory of a variant, measured in a process of its own.

`measure_variant` starts `python -m edgelm.runtime.bench`, so that what is measured is the thin
runtime alone, whatever the caller has loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelm.runtime.errors import EdgelmError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import Measured
from edgelm.runtime.model import load
from edgelm.runtime.schema import decode, encode
from edgelm.runtime.tokenizer import Text

MAX_TEXTS = 4096


@dataclass(frozen=True)
class BenchRequest:
    """What the measuring process is told, as JSON on stdin."""

    bundle: str
    variant: str
    texts: list[str | list[str]]
    threads: int | None
    device: str
    seconds: float  # for latency, and again for throughput


def measure_variant(
    bundle: Path,
    variant: str,
    texts: Sequence[Text],
    *,
    threads: int | None = None,
    device: str = "auto",
    seconds: float = 3.0,
) -> Measured:
    """Measure one variant. Raises UsageError; TargetUnavailable when its engine fails."""
    plain: list[str | list[str]] = [list(t) if isinstance(t, tuple) else t for t in texts]
    request = BenchRequest(
        str(bundle.resolve()), variant, plain[:MAX_TEXTS], threads, device, seconds
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgelm.runtime.bench"],
        input=json.dumps(encode(request)).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["killed"])[-1]
        if done.returncode == UsageError.exit_code:
            raise UsageError(said)
        raise TargetUnavailable(f"{variant}: its engine failed while it was measured: {said}")
    return decode(Measured, json.loads(done.stdout))


def measure(request: BenchRequest) -> Measured:
    """Measure in this process."""
    texts: list[Text] = [(t[0], t[1]) if isinstance(t, list) else t for t in request.texts]
    with load(
        request.bundle,
        variant=request.variant,
        device=request.device,  # type: ignore[arg-type]
        threads=request.threads,
    ) as model:
        median = sorted(texts, key=lambda t: len(str(t)))[len(texts) // 2]
        for _ in range(3):
            model.predict(median)
        latencies = _repeat(lambda: model.predict(median), request.seconds)
        model.predict(texts)
        passes = _repeat(lambda: model.predict(texts), request.seconds, at_least=2)
        return Measured(
            size_bytes=model.variant.size_bytes,
            latency_ms_p50=round(1e3 * float(np.percentile(latencies, 50)), 3),
            latency_ms_p95=round(1e3 * float(np.percentile(latencies, 95)), 3),
            texts_per_s=round(len(texts) / float(np.median(passes)), 1),
            memory_bytes=peak_memory_bytes(),
            threads=request.threads,
        )


def _repeat(call: object, seconds: float, at_least: int = 20) -> list[float]:
    assert callable(call)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
        if len(times) >= 2 and time.perf_counter() > end + 5 * seconds:
            break
    return times


def peak_memory_bytes() -> int | None:
    """The largest resident size of this process so far; None where the system does not tell."""
    if sys.platform == "linux":
        # not getrusage: its figure lives on across exec, so a small child of a large parent
        # would report the parent's size
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """The measuring process: a request on stdin, figures on stdout."""
    try:
        result = measure(decode(BenchRequest, json.load(sys.stdin)))
    except EdgelmError as err:
        sys.stderr.write(f"{err}\n")
        sys.exit(err.exit_code)
    sys.stdout.write(json.dumps(encode(result)))


if __name__ == "__main__":
    main()
