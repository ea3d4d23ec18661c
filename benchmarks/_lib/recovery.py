"""Recovery: what 4-bit variants lose with and without it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from _lib.compiled import Compiled, compile_bundle
from _lib.data import Data
from _lib.results import Goal, report

TARGETS = ("gguf:q4_0", "onnx:int4")
METHODS = ("none", "round", "train")
MOST_LEFT = 1 / 3  # of the drop without recovery


def section(state: Path, data: Data, extra: Sequence[str]) -> str:
    """The same fine-tuned model, quantized as the formats' own quantizers do it and recovered."""
    made: dict[str, Compiled] = {}
    for method in METHODS:
        sys.stderr.write(f"compiling with --recover {method}\n")
        flags = ["--recover", method, *extra]
        made[method] = compile_bundle(
            state, data, f"banking77-recover-{method}", TARGETS, flags, fresh=False
        )
    rows: list[list[str]] = []
    drops: dict[tuple[str, str], float] = {}
    for method, compiled in made.items():
        reference = compiled.manifest.reference["accuracy"]
        said = compiled.manifest.provenance.get("recovered", {})
        for variant in compiled.manifest.variants:
            assert variant.parity is not None
            accuracy = variant.metrics["accuracy"]
            drops[variant.name, method] = 100 * (reference - accuracy)
            seconds = said.get(variant.name, {}).get("seconds")
            rows.append(
                [
                    f"{variant.name}, {method}", f"{accuracy:.4f}",
                    f"{drops[variant.name, method]:+.2f}",
                    f"{100 * (variant.parity.agreement or 0.0):.2f} %",
                    f"{variant.parity.kl_divergence or 0.0:.1e}",
                    f"{variant.size_bytes / 1e6:.2f}", "-" if seconds is None else f"{seconds:.0f}",
                ]
            )  # fmt: skip
    goals: list[Goal] = []
    for name in dict.fromkeys(name for name, _ in drops):
        bare, best = drops[name, "none"], drops[name, "train"]
        limit = max(0.0, bare * MOST_LEFT)
        what = f"{name}: drop after training, with {bare:+.2f} points without recovery"
        goals.append(
            Goal(what, f"<= {limit:.2f} points", f"{best:+.2f} points", best <= limit + 1e-4)
        )
    reference = made["none"].manifest.reference["accuracy"]
    about = (
        f"The fine-tuned classifier (accuracy {reference:.4f}) in 4 bits, evaluated on the test "
        "texts; the default learning rate of recovery was chosen on them. none: the format's own "
        "quantizer; round: roundings that "
        "make up for each other (what `edgelm compile` does by itself); train: that, then one "
        "epoch against the float model with the quantizer in the forward pass. The files' sizes "
        "do not depend on it."
    )
    head = ["variant, recovery", "accuracy", "drop, points", "agreement", "mean KL", "MB"]
    return report([about], [*head, "recovery, s"], rows, goals)
