"""Is the bundle whole, and does it answer here as it did where it was compiled?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import EngineOptions
from edgelm.runtime.errors import TamperedError
from edgelm.runtime.manifest import Task, Variant
from edgelm.runtime.metrics import Bools, Floats, cosine
from edgelm.runtime.model import Model, unavailable
from edgelm.runtime.predictions import label_matrix

# Engines sum in an order that depends on the processor. On logits of size 10 that moves float
# precisions by 1e-4 and 8-bit ones, whose activations round the other way now and then, by 1e-1.
MAX_DIFF_FLOAT, MAX_DIFF_QUANTIZED = 0.01, 0.25
MIN_COSINE_FLOAT, MIN_COSINE_QUANTIZED = 0.9999, 0.99
FLOATS = ("fp32", "fp16", "f32", "f16", "bf16")


@dataclass(frozen=True)
class Check:
    """The result for one variant, or for the files."""

    name: str
    ok: bool
    skipped: bool
    detail: str


def verify_files(bundle: Bundle) -> Check:
    """Sizes, digests, and no file that the manifest does not name."""
    try:
        bundle.check(bundle.all_files())
    except TamperedError as err:
        return Check("files", False, False, err.message)
    extra = bundle.extra_files()
    if extra:
        return Check("files", False, False, f"not in the manifest: {', '.join(extra[:5])}")
    n = sum(1 for _ in bundle.all_files())
    return Check("files", True, False, f"{n} files have their packed size and sha256")


def verify_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> Check:
    """Run the golden texts on this device and compare with what was packed."""
    task = bundle.manifest.task
    reason = unavailable(variant.target, options.device)
    if reason is not None:
        return Check(variant.name, True, True, reason)
    golden = bundle.manifest.golden
    if not golden or len(variant.golden) != len(golden):
        return Check(variant.name, False, False, "the bundle holds no golden answers")
    texts = [g.text if g.pair is None else (g.text, g.pair) for g in golden]
    expected = np.array(variant.golden, np.float32)
    with Model(bundle, variant, options) as model:
        found = model.runner.run(texts).values
    if found.shape != expected.shape:
        return Check(variant.name, False, False, f"gave {found.shape}, packed {expected.shape}")
    exact = variant.precision in FLOATS
    diff = float(np.abs(found - expected).max())
    if task.kind == "feature-extraction":
        worst = float(cosine(found, expected).min())
        ok = worst >= (MIN_COSINE_FLOAT if exact else MIN_COSINE_QUANTIZED)
        return Check(variant.name, ok, False, f"{len(texts)} golden texts, cosine >= {worst:.5f}")
    limit = (MAX_DIFF_FLOAT if exact else MAX_DIFF_QUANTIZED) * max(
        1.0, float(np.abs(expected).max()) / 10
    )
    same = int(_labels_hold(task, found, expected, limit).sum())
    detail = f"{same} of {len(texts)} golden labels hold, largest difference {diff:.1e}"
    return Check(variant.name, same == len(texts) and diff <= limit, False, detail)


def _labels_hold(task: Task, found: Floats, expected: Floats, limit: float) -> Bools:
    """Whether each text has its packed labels, (N,); those nearer than `limit` may flip."""
    same = label_matrix(task, found) == label_matrix(task, expected)
    if task.problem == "multi_label":
        edge = np.log(task.threshold / (1 - task.threshold))
        return (same | (np.abs(expected - edge) < limit)).all(axis=1)
    best = np.sort(expected, axis=1)
    return same.all(axis=1) | (best[:, -1] - best[:, -2] < limit)
