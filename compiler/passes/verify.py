"""verify: run a variant on its real engine and compare it with the reference; fails closed.

The comparison is kept whether it passes or not; limits are applied each time, so that a changed
limit does not run the engine again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.context import Context, Worst, eval_texts
from edgelm.compiler.hf import versions
from edgelm.compiler.limits import failures, limits_of
from edgelm.compiler.machine import machine_id
from edgelm.compiler.packing import manifest_variant
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.reference import ORIGINAL_COSINE, metrics_of
from edgelm.compiler.training import settled_distil
from edgelm.runtime.engine import Device, EngineOptions
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.manifest import Parity, Task
from edgelm.runtime.metrics import agreement, cosine, kl_divergence, main_metric
from edgelm.runtime.predictions import label_matrix, probabilities
from edgelm.runtime.runner import Runner
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.targets import get_target

N_WORST = 5
DEVICE: Device = "cpu"  # that variants are verified and measured on


class Verify(Pass):
    """Fills outputs, parity, metrics, worst and failures of one variant."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = f"verify {variant}"

    def inputs(self, context: Context) -> dict[str, Any]:
        target = get_target(context.variants[self.variant].target)
        return {
            "lower": context.digests[f"lower {self.variant}"],
            "reference": context.digests["reference"],
            "engine": versions(target.engine_package),
            "machine": machine_id(),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.tokenizer_dir and context.text and context.task
        state = context.variants[self.variant]
        session = get_target(state.target).open(
            state.folder,
            manifest_variant(state),
            context.task,
            EngineOptions(DEVICE, context.recipe.threads),
        )
        runner = Runner(Tokenizer(context.tokenizer_dir, context.text), session)
        texts = eval_texts(context)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            context.progress.advance(done, len(texts))

        try:
            np.save(folder / "outputs.npy", runner.run(texts, advance).values)
            np.save(folder / "golden.npy", runner.run(context.golden).values)
        finally:
            session.close()

    def load(self, context: Context, folder: Path) -> None:
        assert context.reference is not None and context.task is not None
        task, reference = context.task, context.reference
        state = context.variants[self.variant]
        state.outputs = outputs = np.load(folder / "outputs.npy")
        state.golden = np.load(folder / "golden.npy")
        state.parity = compare(task, reference, outputs)
        state.metrics = metrics_of(context, outputs)
        state.worst = _worst(context, reference, outputs)
        limits = limits_of(context.recipe, state)
        state.failures = failures(
            task, limits, state.parity, state.metrics, context.reference_metrics
        )
        if context.original is not None:
            state.failures += original_failures(context, state.metrics)


def compare(task: Task, reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> Parity:
    """How far `outputs` are from `reference`, (N, C) or (N, H)."""
    n = len(reference)
    diff = float(np.abs(outputs - reference).max())
    if task.kind == "feature-extraction":
        cosines = cosine(reference, outputs)
        return Parity(n, diff, min_cosine=float(cosines.min()), mean_cosine=float(cosines.mean()))
    return Parity(
        n,
        diff,
        agreement=float(agreement(task, reference, outputs).mean()),
        kl_divergence=float(kl_divergence(task, reference, outputs).mean()),
    )


def original_failures(context: Context, metrics: dict[str, float]) -> tuple[str, ...]:
    """Whether a variant loses too much against the model before it was made smaller: of the main
    metric, or of embeddings that have none, of the mean cosine with those before. Of generation it
    is the rise of perplexity."""
    assert context.task is not None
    limit = settled_distil(context.recipe).max_drop
    if context.task.kind == "text-generation":
        before, now = (found["perplexity"] for found in (context.original_metrics, metrics))
        if now <= before * (1 + limit + 1e-9):
            return ()
        return (
            f"perplexity {now:.4f} is {now / before:.4f} of the {before:.4f} of the model before "
            f"it was made smaller, the limit is {1 + limit:.4f} (distil.max_drop)",
        )
    name = main_metric(context.task)
    if name not in context.original_metrics:
        name = ORIGINAL_COSINE
    before, now = context.original_metrics[name], metrics.get(name, math.nan)
    if before - now <= limit + 1e-9:
        return ()
    return (
        f"{name} {now:.4f} is {before - now:.4f} under the {before:.4f} of the model before it was "
        f"made smaller, the limit is {limit:.4f} (distil.max_drop)",
    )


def require_verified(context: Context) -> None:
    """Raise VerificationError that tells of every variant over its limits, with worst examples."""
    failed = [v for v in context.variants.values() if v.failures]
    if not failed:
        return
    lines: list[str] = []
    for state in failed:
        lines += [f"{state.name}: {failure}" for failure in state.failures]
        for worst in state.worst[:3]:
            lines.append(
                f"    {worst.text[:70]!r}: reference {_shown(worst.reference)}, "
                f"variant {_shown(worst.answer)} ({worst.what} {worst.difference:.3g})"
            )
    names = ", ".join(v.name for v in failed)
    instead = f"use a higher precision instead of {names}, "
    if context.trimmed is not None:
        instead += "keep more of the vocabulary with --vocab-texts FILE, "
    if context.sparsified is not None:
        instead += "keep more of the weights with a lower prune.sparsity, "
    if context.original_metrics:
        instead += "leave less of the model out with `prune`, train longer with --distil-epochs, "
    raise VerificationError(
        "verification failed, no bundle was written\n" + "\n".join(lines),
        hint=f"{instead}or state other limits under `verify`"
        + (" and `distil`" if context.original_metrics else ""),
    )


def _shown(answer: str) -> str:
    """In a line of an error."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(answer.split()))
    return line if len(line) <= 120 else f"{line[:119]}…"


def _worst(
    context: Context, reference: NDArray[np.float32], outputs: NDArray[np.float32]
) -> tuple[Worst, ...]:
    assert context.task is not None
    task, texts = context.task, eval_texts(context)
    if task.kind == "feature-extraction":
        distance = 1 - cosine(reference, outputs)
    else:
        # texts whose label flips come first, then by divergence
        flips = ~agreement(task, reference, outputs)
        distance = kl_divergence(task, reference, outputs) + 1e3 * flips
    order = np.argsort(-distance, kind="stable")[:N_WORST]
    return tuple(
        Worst(
            str(texts[i]),
            _answer(task, reference, i),
            _answer(task, outputs, i),
            float(distance[i] % 1e3),
        )
        for i in order
    )


def _answer(task: Task, values: NDArray[np.float32], i: int) -> str:
    if task.kind == "feature-extraction":
        return f"|v| = {np.linalg.norm(values[i]):.3f}"
    row = values[i : i + 1]
    given = np.flatnonzero(label_matrix(task, row)[0])
    probs = probabilities(task, row)[0]
    return ", ".join(f"{task.labels[k]} {probs[k]:.3f}" for k in given) or "no label"
