"""Finetune: one `edgelm compile` on 1,000 pairs; what the loss falls by, and what of it is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _lib.compiled import OPEN_CHAT_LIMITS, Compiled, run_compile
from _lib.machine import ROOT
from _lib.results import Goal, report
from _lib.smollm2.bundle import MODEL
from edgelm.runtime.manifest import Variant

NAME = "bitext"
MIN_KEPT = {"gguf-q4_0": 0.90, "gguf-q4_k_m": 0.95, "gguf-q8_0": 0.99, "onnx-int4": 0.90}
RECOVERED = ("gguf-q4_0", "gguf-q4_k_m", "onnx-int4")
MIN_FALL = 0.40
FOLDER, FILE = "bitext_support", "train_small.jsonl"
SOURCE = "github.com/Xinyu143/SmartBankFAQ, data/train_small.jsonl"


def find_train(given: Path | None) -> Path:
    """`--data`, else EDGELM_DATA, else ../shared/data. Ends the run if absent."""
    base = Path(os.environ.get("EDGELM_DATA") or ROOT.parent / "shared" / "data")
    path = (given or base / FOLDER) / FILE
    if not path.is_file():
        raise SystemExit(f"error: no {path}\nhint: take it from {SOURCE}; --data names its folder")
    return path


def arguments_for(train: Path) -> list[str]:
    """Of every compile of this model on this data, targets left out."""
    return [MODEL, "--task", "text-generation", "--train", str(train)]


def section(state: Path, train: Path, extra: Sequence[str], *, fresh: bool) -> str:
    """The compile without recovery, from an empty cache if `fresh`, and a second one with it that
    goes on from its stages; the figures of their manifests."""
    common = [*arguments_for(train), *OPEN_CHAT_LIMITS, *extra]

    def run(name: str, variants: Sequence[str], recover: str, *, fresh: bool) -> Compiled:
        targets = [part for v in variants for part in ("--target", v.replace("-", ":", 1))]
        arguments = [*common, *targets, "--recover", recover]
        return run_compile(state / "finetune", name, arguments, fresh=fresh)

    plain = run(NAME, tuple(MIN_KEPT), "none", fresh=fresh)
    return _render(plain, run(f"{NAME}-recovered", RECOVERED, "auto", fresh=False))


def _render(compiled: Compiled, recovered: Compiled) -> str:
    reference, history = compiled.manifest.reference, compiled.history
    best = {variant.name: variant for variant in compiled.manifest.variants}
    best |= {variant.name: variant for variant in recovered.manifest.variants}
    before, after = reference["base_loss"], reference["loss"]
    fall = 1 - after / before
    stages = ", ".join(f"{name} {s:.0f} s" for name, s in compiled.stages.items() if s >= 1)
    whole = f"the whole command: {compiled.wall_s:.0f} s"
    if compiled.resumed:
        whole = f"the sum of the passes: {compiled.wall_s:.0f} s (some kept from an earlier run)"
    rows = [
        ["before fine-tuning (fp32)", f"{before:.4f}", "-", "-", "-", "-"],
        ["after (reference, fp32)", f"{after:.4f}", "100.0 %", "-", "-", "-"],
        *[_row(variant) for variant in compiled.manifest.variants],
        *[_row(variant, ", recovered") for variant in recovered.manifest.variants],
    ]
    goals = [
        Goal("evaluation loss falls by", f">= {MIN_FALL:.0%}", f"{fall:.1%}", fall >= MIN_FALL),
        *[_goal(variant) for variant in best.values()],
    ]
    head = ["model", "loss", "gain kept", "equal likeliest token", "mean KL", "MB"]
    trained = f"{history['trained_parameters']:,} trained parameters" if history else "?"
    said = [
        f"`edgelm compile {MODEL} --task text-generation --train train_small.jsonl`, "
        f"{len(MIN_KEPT)} targets; bitext_support, 1,000 instruction-and-answer pairs of "
        "bank customers, a tenth held out by edgelm and never trained on. Loss: mean "
        "negative log-likelihood of an answer token, in nats. Gain: what fine-tuning "
        "lowered the loss by. Recovered: rounded so that errors of weights cancel out, as "
        "`edgelm compile` does by default. Goals are of recovered variants where there are any. "
        "Figures of the bundles' manifests.",
        "",
        f"- training: {trained}; {whole}; by pass: {stages}",
        f"- recovery, in a second compile: {_recoveries(recovered)}",
        "- verification limits were opened, so that figures of every variant are shown",
    ]
    return report(said, head, rows, goals)


def _recoveries(compiled: Compiled) -> str:
    found: dict[str, dict[str, Any]] = compiled.manifest.provenance["recovered"]
    return ", ".join(f"{v} in {d['seconds']:.0f} s" for v, d in found.items())


def _row(variant: Variant, how: str = "") -> list[str]:
    parity = variant.parity
    assert parity is not None
    return [
        f"{variant.name}{how}",
        f"{variant.metrics['loss']:.4f}",
        "-" if parity.gain_kept is None else f"{100 * parity.gain_kept:.1f} %",
        "-" if parity.agreement is None else f"{100 * parity.agreement:.1f} %",
        "-" if parity.kl_divergence is None else f"{parity.kl_divergence:.1e}",
        f"{variant.size_bytes / 1e6:.1f}",
    ]


def _goal(variant: Variant) -> Goal:
    least = MIN_KEPT[variant.name]
    kept = variant.parity.gain_kept if variant.parity else None
    found = "no gain" if kept is None else f"{100 * kept:.1f} %"
    is_met = kept is not None and kept >= least
    return Goal(f"{variant.name}: gain kept", f">= {100 * least:.0f} %", found, is_met)
