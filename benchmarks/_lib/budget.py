"""Budget: `edgelm tune` finds a small variant that loses little, from an empty cache."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _lib.compiled import MODEL, Compiled, compile_bundle
from _lib.data import Data
from _lib.results import Goal, report
from _lib.rounds import environment

MAX_MB, MAX_DROP = 8.0, 1.5
MAX_MINUTES = 60
LEAST_SHARE = 0.8  # of the search's time in trainings: what else it costs is little
# What one gets of the same fine-tuned model without a search: the formats' own quantizers.
PLAIN = ("onnx:int8", "gguf:q4_0", "gguf:q2_k")


def section(state: Path, data: Data, extra: Sequence[str]) -> str:
    """The search, and the smallest plain files beside it."""
    folder = state / "budget"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = [MODEL, "--train", str(data.train), "--eval", str(data.test), "--early-stop", "0"]
    arguments += ["--max-size", f"{MAX_MB:g}MB", "--max-drop", f"{MAX_DROP:g}"]
    arguments += ["--vary", "targets", "--vary", "vocabulary", "--time-budget", f"{MAX_MINUTES}m"]
    arguments += ["--cache-dir", str(folder / "cache"), "--best", str(folder / "best.yaml")]
    arguments += ["--report", str(folder / "tune.html"), *extra]
    plan = _tune([*arguments, "--dry-run"])
    started = time.monotonic()
    found = _tune(arguments)
    seconds = time.monotonic() - started
    histories = (folder / "cache").glob("finetune/*/history.json")
    trained = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in histories]
    flags = ["--recover", "none", *extra]
    plain = compile_bundle(state, data, "banking77-plain", PLAIN, flags, fresh=False)
    return _render(plan, found, seconds, trained, plain)


def _tune(arguments: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgelm", "tune", *arguments, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, env=environment(None), text=True)
    if not run.stdout:
        raise RuntimeError(f"edgelm tune: exit code {run.returncode}")
    return json.loads(run.stdout)


def _render(
    plan: dict[str, Any],
    found: dict[str, Any],
    seconds: float,
    trained: Sequence[float],
    plain: Compiled,
) -> str:
    rows = [
        [
            p["name"], _number(p["size_bytes"], 1e-6), _number(p["metric"], digits=4),
            _number(p["drop_points"]), _number(p["latency_ms"]),
            "best" if p["name"] == found["best"] else p["reason"] or p["state"],
        ]
        for p in found["points"]
    ]  # fmt: skip
    reference = plain.manifest.reference["accuracy"]
    for variant in plain.manifest.variants:
        accuracy = variant.metrics["accuracy"]
        drop = 100 * (reference - accuracy)
        size = variant.size_bytes / 1e6
        rows.append(
            [f"plain {variant.name}", f"{size:.2f}", f"{accuracy:.4f}", f"{drop:.2f}", "-", ""]
        )
    best = next((p for p in found["points"] if p["name"] == found["best"]), None)
    n_made = sum(p["size_bytes"] is not None for p in found["points"])
    mb = math.inf if best is None else best["size_bytes"] / 1e6
    drop = math.inf if best is None else best["drop_points"]
    minutes, share = seconds / 60, sum(trained) / seconds
    goals = [
        Goal("best point's size", f"<= {MAX_MB:g} MB", f"{mb:.2f} MB", mb <= MAX_MB),
        Goal("its drop", f"<= {MAX_DROP} points", f"{drop:.2f} points", drop <= MAX_DROP),
        Goal(
            "the whole search", f"<= {MAX_MINUTES} minutes", f"{minutes:.0f} minutes",
            minutes <= MAX_MINUTES,
        ),
        Goal(
            f"share of its time in {len(trained)} trainings, beside {n_made} points made",
            f">= {LEAST_SHARE:.0%}", f"{share:.0%}", share >= LEAST_SHARE,
        ),
    ]  # fmt: skip
    said = [
        f"`edgelm tune {MODEL} --train train.csv --eval test.csv --early-stop 0 --max-size "
        f"{MAX_MB:g}MB --max-drop {MAX_DROP} --vary targets --vary vocabulary --time-budget "
        f"{MAX_MINUTES}m`, from an empty cache. The plan said: {len(plan['points'])} points, "
        f"{plan['trainings']} trainings, {plan['seconds'] / 60:.0f} minutes at most. Drops are "
        "against the model with nothing left out, which is trained for that alone. Points are "
        "chosen on the evaluation texts, which are the test texts here.",
        "",
        "- plain: the same model with its whole vocabulary, by the formats' own quantizers, "
        "nothing searched or recovered; the smallest that they have",
    ]
    return report(said, ["point", "MB", "accuracy", "drop, points", "ms", "outcome"], rows, goals)


def _number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
