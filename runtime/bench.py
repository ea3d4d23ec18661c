"""Speed and memory of a variant, measured in a process of its own.

`measure_variant` starts Python with `main` below, so that what is measured is the thin runtime
alone, whatever the caller has loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.runtime import errors
from edgelm.runtime.bundle import TOKENIZER_DIR
from edgelm.runtime.errors import EdgelmError, MissingExtra, TargetUnavailable, UsageError
from edgelm.runtime.load import load
from edgelm.runtime.manifest import Manifest, Measured, read_manifest
from edgelm.runtime.schema import decode, encode
from edgelm.runtime.tokenizer import Text, Tokenizer

MAX_TEXTS = 4096

# Not `python -m`, which puts the current folder first on the path: a json.py there would be run.
# edgelm's own place comes last, for a caller who found it in a way the child does not know.
_CHILD = """\
import sys
if sys.path[:1] == [""]:
    sys.path.pop(0)
sys.path.append(sys.argv[1])
from edgelm.runtime.bench import main
main()
"""


@dataclass(frozen=True)
class BenchRequest:
    """What the measuring process is told, as JSON on stdin."""

    bundle: str
    variant: str
    texts: list[str | list[str]]  # for generation, whole prompts
    threads: int | None
    device: str
    seconds: float  # for each of two figures
    batch: int = 1  # texts in a call whose latency is measured
    tokens: int | None = None  # of each such text, about; None: a text of median length


def measure_variant(
    bundle: Path,
    variant: str,
    texts: Sequence[Text],
    *,
    threads: int | None = None,
    device: str = "auto",
    seconds: float = 3.0,
    batch: int = 1,
    tokens: int | None = None,
) -> Measured:
    """Measure one variant. Latency is that of `batch` texts in one call, each of about `tokens`
    tokens (of median length if None); generation knows neither.

    Raises what `load` does, UsageError; TargetUnavailable for a crash."""
    if not texts:
        raise UsageError("there are no texts to measure with", hint="give some, as with --data")
    plain: list[str | list[str]] = [list(t) if isinstance(t, tuple) else t for t in texts]
    request = BenchRequest(
        str(bundle.resolve()), variant, plain[:MAX_TEXTS], threads, device, seconds, batch, tokens
    )
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(Path(__file__).absolute().parents[2])],
        input=json.dumps(encode(request)).encode(),
        capture_output=True,
        check=False,
    )
    found = _last_object(done.stdout)
    if "error" in found:
        raise _as_raised(found)
    if done.returncode != 0 or not found:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["killed"])[-1]
        raise TargetUnavailable(f"{variant}: its engine failed while it was measured: {said}")
    return decode(Measured, found)


def bench_texts(manifest: Manifest, data: Path | None, column: str | None) -> list[Text]:
    """What to measure with: the texts of a file, or the bundle's golden ones."""
    if data is None:
        return [g.text if g.pair is None else (g.text, g.pair) for g in manifest.golden]
    from edgelm.runtime.streams import file_rows

    return [t for _, t in file_rows(data, pair=manifest.task.pair, text=column, second=None)]


def _last_object(stdout: bytes) -> dict[str, Any]:
    """The JSON object of the last line, as an engine may print lines of its own; {} if none."""
    try:
        found = json.loads((stdout.splitlines() or [b""])[-1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_raised(found: dict[str, Any]) -> EdgelmError:
    """The error that the child wrote."""
    kind: type[EdgelmError] = getattr(errors, str(found["error"]), EdgelmError)
    if kind is MissingExtra:  # makes its message itself
        kind = TargetUnavailable
    return kind(found["message"], hint=found["hint"])


def measure(request: BenchRequest) -> Measured:
    """Measure in this process."""
    root = Path(request.bundle)
    manifest = read_manifest(root)
    if manifest.task.kind == "text-generation":
        from edgelm.runtime.generate.timing import measure_decoder

        return measure_decoder(
            root,
            request.variant,
            [t if isinstance(t, str) else "\n".join(t) for t in request.texts],
            device=request.device,  # type: ignore[arg-type]
            threads=request.threads,
            seconds=request.seconds,
        )
    texts: list[Text] = [(t[0], t[1]) if isinstance(t, list) else t for t in request.texts]
    with load(
        request.bundle,
        variant=request.variant,
        device=request.device,  # type: ignore[arg-type]
        threads=request.threads,
    ) as model:
        one = sorted(texts, key=lambda t: len(str(t)))[len(texts) // 2]
        if request.tokens is not None:
            one = sized_text(Tokenizer(root / TOKENIZER_DIR, manifest.text), texts, request.tokens)
        call = one if request.batch == 1 else [one] * request.batch
        for _ in range(3):
            model.predict(call)
        latencies = repeat(lambda: model.predict(call), request.seconds)
        model.predict(texts)
        passes = repeat(lambda: model.predict(texts), request.seconds, at_least=2)
        return Measured(
            size_bytes=model.variant.size_bytes,
            latency_ms_p50=round(1e3 * float(np.percentile(latencies, 50)), 3),
            latency_ms_p95=round(1e3 * float(np.percentile(latencies, 95)), 3),
            texts_per_s=round(len(texts) / float(np.median(passes)), 1),
            memory_bytes=peak_memory_bytes(),
            threads=request.threads,
            latency_batch=request.batch,
            latency_tokens=request.tokens,
        )


def sized_text(tokenizer: Tokenizer, texts: Sequence[Text], n_tokens: int) -> Text:
    """Words of `texts`, one after another, until they have at least `n_tokens` tokens; a pair
    shares them between its sides."""
    words = [w for t in texts for w in (" ".join(t) if isinstance(t, tuple) else t).split()]
    paired = isinstance(texts[0], tuple)

    def joined(n: int) -> Text:
        taken = [words[i % len(words)] for i in range(n)]
        half = n // 2
        return (" ".join(taken[:half]), " ".join(taken[half:])) if paired else " ".join(taken)

    n = 1
    while words and n < n_tokens and tokenizer.encode([joined(n)]).lengths[0] < n_tokens:
        n += 1
    return joined(n) if words else texts[0]


def repeat(call: Callable[[], object], seconds: float, at_least: int = 20) -> list[float]:
    """Seconds of each call, called again and again for `seconds`."""
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
    """The measuring process: a request on stdin; figures, or an error, on stdout's last line."""
    try:
        result = measure(decode(BenchRequest, json.load(sys.stdin)))
    except EdgelmError as err:
        said = {"error": type(err).__name__, "message": err.message, "hint": err.hint}
        sys.stdout.write(f"\n{json.dumps(said)}\n")
        sys.exit(err.exit_code)
    sys.stdout.write(f"\n{json.dumps(encode(result))}\n")
