"""GGUF: a Hugging Face directory to f16, beside llama.cpp's own script; memory on a large model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _lib.compiled import Compiled
from _lib.results import Goal, at_least, report
from _lib.rounds import WORKERS, Spread, Worker, environment, ratios
from _lib.smollm2.peers import CONVERT, CONVERT_PACKAGES

OURS, PEER = "edgelm", "convert_hf_to_gguf.py"
# name -> sizes of a Llama-like model; the first that the disk has room for twice is taken
LARGE = {
    "7 billion": (4096, 11008, 32, 32),
    "3 billion": (3072, 8192, 26, 24),
    "1 billion": (2048, 5632, 22, 16),
}
SPARE_BYTES = 4 * 2**30
MAX_TENSORS, MAX_MORE_MB = 1.5, 500


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    seconds: float
    cpu_s: float
    peak_mb: float


def section(state: Path, compiled: Compiled, *, rounds: int, large: bool) -> str:
    """Both programs in turns; then edgelm on the large model."""
    folder = state / "gguf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: dict[str, list[Done]] = {OURS: [], PEER: []}
    for i in range(rounds + 1):
        for name in found:
            done = _convert(name, compiled.merged, folder)
            if i > 0:  # the first start reads files into the page cache
                found[name].append(done)
        sys.stderr.write(f"conversions {i}/{rounds}\n" if i else "warm-up done\n")
    try:
        return _render(found, rounds, _large(compiled.merged, folder) if large else None)
    finally:
        shutil.rmtree(folder)


def _convert(name: str, model: Path, folder: Path) -> Done:
    """One conversion, whose result is deleted."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        if name == OURS:
            options = json.dumps({"model": str(model), "folder": made})
            return _run([sys.executable, str(WORKERS / "lower_gguf.py"), options])
        command = [sys.executable, str(CONVERT), str(model), "--outtype", "f16"]
        return _run([*command, "--outfile", f"{made}/model.gguf"], str(CONVERT_PACKAGES))


def _run(command: Sequence[str], packages: str = "") -> Done:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        env = environment(None) | ({"PYTHONPATH": packages} if packages else {})
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command[1]}: {process.returncode}\n{said.read()[-3000:]}")
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Done(seconds, usage.ru_utime + usage.ru_stime, peak_bytes / 1e6)


def _large(tokenizer: Path, folder: Path) -> tuple[str, int, int, Done] | None:
    """(name, parameters, bytes of the largest tensor, the conversion); None without the room."""
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    for name, (H, F, n_layers, n_heads) in LARGE.items():
        n = 2 * config["vocab_size"] * H + n_layers * (4 * H * H + 3 * H * F)
        if shutil.disk_usage(folder).free < 4 * n + SPARE_BYTES:
            continue
        sys.stderr.write(f"writing a random model of {name} parameters …\n")
        options = {"folder": str(folder / "large"), "tokenizer": str(tokenizer)}
        options |= {"hidden_size": H, "intermediate_size": F}
        options |= {"num_hidden_layers": n_layers, "num_attention_heads": n_heads}
        with Worker("random model", "random_model.py", options) as made:
            facts = made.ready
        sys.stderr.write("converting it …\n")
        done = _convert(OURS, folder / "large", folder)
        return name, facts["parameters"], facts["largest_bytes"], done
    return None


def _render(
    found: dict[str, list[Done]], rounds: int, large: tuple[str, int, int, Done] | None
) -> str:
    seconds = {name: [d.seconds for d in done] for name, done in found.items()}
    rows = [
        [
            name,
            Spread.of(seconds[name]).show(),
            Spread.of([d.cpu_s for d in done]).show(),
            Spread.of([d.peak_mb for d in done]).show(0),
            "1" if name == OURS else ratios(seconds[name], seconds[OURS]).show(),
        ]
        for name, done in found.items()
    ]
    gain = ratios(seconds[PEER], seconds[OURS])
    goals = [at_least(f"seconds of {PEER}, as a multiple of edgelm's", 1, gain, "x")]
    said = [
        "SmolLM2-135M-Instruct, Hugging Face directory to f16, each a whole process of its own "
        f"from start to end, {rounds} in turns after one that is not counted. Peak: largest "
        "resident size in 10^6 bytes, mapped files included."
    ]
    if large is not None:
        name, n, largest, done = large
        limit = MAX_TENSORS * largest / 1e6 + MAX_MORE_MB
        said += [
            "",
            f"edgelm on a random Llama-like model of {n / 1e9:.2f} billion parameters in bfloat16, "
            f"its largest tensor {largest / 1e6:,.0f} MB: {done.seconds:.0f} s ({done.cpu_s:.0f} s "
            f"of CPU), peak {done.peak_mb:,.0f} MB.",
        ]
        what = f"peak memory, {name} parameters"
        rule = f"<= {MAX_TENSORS} x largest tensor + {MAX_MORE_MB} = {limit:,.0f} MB"
        goals.append(Goal(what, rule, f"{done.peak_mb:,.0f} MB", done.peak_mb <= limit))
    return report(said, ["program", "s", "CPU s", "peak MB", "edgelm is x faster"], rows, goals)
