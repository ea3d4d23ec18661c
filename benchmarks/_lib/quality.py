"""Quality: accuracy, drop, agreement and size of every variant, and how long it took."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from _lib.compiled import MODEL, NAME, TARGETS, Compiled, compile_bundle
from _lib.data import Data
from _lib.results import Goal, report
from edgelm.compiler.limits import failures, limits_for
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.manifest import Manifest, Variant


def measure(state: Path, data: Data, extra: Sequence[str], *, fresh: bool) -> Compiled:
    """Compile the bundle that every part uses."""
    sys.stderr.write("compiling\n")
    return compile_bundle(state, data, NAME, TARGETS, extra, fresh=fresh)


def section(compiled: Compiled) -> str:
    """What the compile found."""
    manifest = compiled.manifest
    reference = manifest.reference["accuracy"]
    n = next(v.parity.n for v in manifest.variants if v.parity)
    history = compiled.history
    rows = [["reference (Hugging Face fp32)", f"{reference:.4f}", *["-"] * 5]]
    rows += [_row(variant, manifest) for variant in manifest.variants]
    head = ["variant", "accuracy", "drop, points", "agreement", "mean KL", "MB", "default limits"]
    training = compiled.stages.get("finetune", 0.0)
    epochs = history.get("epochs", [])
    losses = ", ".join(f"{epoch['loss']:.3f}" for epoch in epochs if "loss" in epoch)
    whole = (
        "the sum of its passes, some from an earlier run"
        if compiled.resumed
        else "the whole command"
    )
    said = [
        f"`edgelm compile {MODEL} --train train.csv --eval test.csv --early-stop 0`, "
        f"{len(TARGETS)} targets; evaluated on the {n:,} test texts that are not in the "
        f"training data. No choice is made on them: the last epoch is taken.",
        "",
        f"- training: {history.get('method')}, {history.get('precision')}, "
        f"{len(epochs)} epochs, {history.get('trained_parameters', 0):,} trained parameters, "
        f"{training:.0f} s; loss by epoch {losses}",
        f"- {whole}: {compiled.wall_s:.0f} s; by pass: {_by_pass(compiled.stages)}",
        "- MB: 10^6 bytes of the variant's files, tokenizer "
        f"({_tokenizer_bytes(manifest) / 1e6:.2f} MB, shared by all) left out",
        "- default limits: whether `edgelm compile` packs the variant with no limit changed",
    ]
    return report(said, head, rows, _goals(manifest, compiled))


def _row(variant: Variant, manifest: Manifest) -> list[str]:
    assert variant.parity is not None
    missed = failures(
        manifest.task,
        limits_for(Recipe(model=MODEL), variant.target, variant.precision),
        variant.parity,
        variant.metrics,
        manifest.reference,
    )
    return [
        variant.name,
        f"{variant.metrics['accuracy']:.4f}",
        f"{_drop(variant, manifest):+.2f}",
        f"{100 * (variant.parity.agreement or 0.0):.2f} %",
        f"{variant.parity.kl_divergence or 0.0:.1e}",
        f"{variant.size_bytes / 1e6:.2f}",
        "missed" if missed else "kept",
    ]


def _drop(variant: Variant, manifest: Manifest) -> float:
    return 100 * (manifest.reference["accuracy"] - variant.metrics["accuracy"])


def _by_pass(stages: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items() if seconds >= 1)


def _tokenizer_bytes(manifest: Manifest) -> int:
    return sum(f.size_bytes for f in manifest.files if f.path.startswith("tokenizer/"))


def _goals(manifest: Manifest, compiled: Compiled) -> list[Goal]:
    by_name = {variant.name: variant for variant in manifest.variants}
    reference = manifest.reference["accuracy"]
    minutes = compiled.wall_s / 60
    goals = [
        Goal("reference accuracy", ">= 0.92", f"{reference:.4f}", reference >= 0.92),
        Goal("time of the whole compile", "<= 20 minutes", f"{minutes:.1f} minutes", minutes <= 20),
    ]
    for name, limit in (("onnx-int8", 0.5), ("gguf-q8_0", 0.3)):
        drop = _drop(by_name[name], manifest)
        # a hair above: the metric is kept with 6 digits
        goals.append(
            Goal(f"{name}: drop", f"<= {limit} points", f"{drop:+.2f} points", drop <= limit + 1e-4)
        )
    size = by_name["onnx-int8"].size_bytes / 1e6
    goals.append(Goal("onnx-int8: size", "<= 24 MB", f"{size:.2f} MB", size <= 24))
    for name, share in (("onnx-fp32", 1.0), ("gguf-f16", 0.999), ("gguf-q8_0", 0.99)):
        parity = by_name[name].parity
        found = (parity.agreement if parity else None) or 0.0
        limit = f"{'=' if share == 1 else '>='} {100 * share:g} %"
        goals.append(
            Goal(f"{name}: agreement", limit, f"{100 * found:.2f} %", found >= share - 1e-12)
        )
    return goals
