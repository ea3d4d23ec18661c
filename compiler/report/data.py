"""What the report and the card are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.context import Context, Worst, truth_matrix
from edgelm.compiler.data import DataReport
from edgelm.compiler.limits import Limits, limits_for
from edgelm.runtime.manifest import Manifest


@dataclass(frozen=True)
class ReportData:
    """All that the report and the card show. N evaluation texts, C labels, H hidden size."""

    manifest: Manifest
    recipe_yaml: str
    data: DataReport
    training: dict[str, Any]  # method, seconds, precision, trained_parameters, epochs[], merge{}
    notes: tuple[str, ...]
    truth: NDArray[np.bool_] | None  # (N, C) labels given in the data; None for embeddings
    reference: NDArray[np.float32]  # (N, C) logits or (N, H) vectors of the Hugging Face model
    outputs: dict[str, NDArray[np.float32]]  # variant name -> the same shape
    worst: dict[str, tuple[Worst, ...]]
    limits: dict[str, Limits] = field(default_factory=dict[str, Limits])  # by variant name
    failures: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def report_data(context: Context, manifest: Manifest, recipe_yaml: str) -> ReportData:
    """Gather it from the context."""
    assert context.data and context.task and context.reference is not None
    classifies = context.task.kind == "text-classification"
    variants = list(context.variants.values())
    return ReportData(
        manifest=manifest,
        recipe_yaml=recipe_yaml,
        data=context.data.report,
        training={k: v for k, v in context.training.items() if k != "folder"},
        notes=tuple(context.notes),
        truth=truth_matrix(context.task, context.data.eval) if classifies else None,
        reference=context.reference,
        outputs={v.name: v.outputs for v in variants if v.outputs is not None},
        worst={v.name: v.worst for v in variants},
        limits={v.name: limits_for(context.recipe, v.target, v.precision) for v in variants},
        failures={v.name: v.failures for v in variants},
    )
