"""llama.cpp's own programs, set up by benchmarks/setup_llama_cpp."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from _lib.rounds import environment

HOME = Path(__file__).resolve().parents[2] / ".envs" / "llama.cpp"
CONVERT = HOME / "source" / "convert_hf_to_gguf.py"
CONVERT_PACKAGES = HOME / "python"


def need_llama_cpp() -> None:
    """End the run unless they are set up."""
    if not (HOME / "edgelm-peers.stamp").exists():
        raise SystemExit(
            "error: llama.cpp's programs are not set up\nhint: run benchmarks/setup_llama_cpp"
        )


def describe() -> str:
    """The line that stands over the tables."""
    version = (HOME / "source.version").read_text(encoding="utf-8").strip()
    return f"llama.cpp's own programs: built from the sdist of llama-cpp-python {version}"


def llama_bench(
    model: Path, threads: int, n_prompt: int, n_answer: int, n_before: int
) -> tuple[float, float]:
    """(prompt, answer) tokens/s of one repetition after its own warm-up, in new processes; the
    answer stands behind `n_before` tokens."""
    prompt = _llama_bench(model, threads, ["-p", str(n_prompt), "-n", "0"])
    answer = ["-p", "0", "-n", str(n_answer), "-d", str(n_before)]
    return prompt, _llama_bench(model, threads, answer)


def _llama_bench(model: Path, threads: int, test: list[str]) -> float:
    """Tokens/s of a single test."""
    command = [str(HOME / "bin" / "llama-bench"), "-m", str(model), "-t", str(threads), *test]
    command += ["-r", "1", "-o", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(None)
    )
    if done.returncode != 0:
        raise RuntimeError(f"llama-bench: exit code {done.returncode}\n{done.stderr[-3000:]}")
    (found,) = json.loads(done.stdout)
    return float(found["avg_ts"])
