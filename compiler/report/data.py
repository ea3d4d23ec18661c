"""What the report and the card are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.data import ChatReport
from edgelm.compiler.context import Context, Worst, truth_matrix
from edgelm.compiler.data import DataReport
from edgelm.compiler.limits import Limits, limits_of
from edgelm.runtime.manifest import Manifest


@dataclass(frozen=True)
class SearchPoint:
    """One variant of one model of a search; None for what was not found out."""

    name: str
    size_bytes: int | None
    quality: float | None
    drop: float | None  # points, or per cent of perplexity
    latency_ms: float | None
    memory_bytes: int | None
    outcome: str
    is_front: bool  # no other point is at least as good in everything
    is_best: bool


@dataclass(frozen=True)
class Search:
    """What a search within a budget has found; points in the order in which they are listed."""

    quality: str  # name of the figure
    drop_unit: str
    reference: float | None  # that of the model with nothing left out
    most_bytes: float | None  # bounds of the budget
    most_latency_ms: float | None
    seconds: float
    points: tuple[SearchPoint, ...]
    machines: tuple[str, ...] = ()  # that latency and memory were measured on


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What is shown of every kind of task."""

    manifest: Manifest
    recipe_yaml: str
    training: dict[str, Any]  # method, seconds, precision, trained_parameters, epochs[], merge{}
    notes: tuple[str, ...]
    worst: dict[str, tuple[Worst, ...]]  # by variant name, as the next two
    limits: dict[str, Limits] = field(default_factory=dict[str, Limits])
    failures: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    search: Search | None = None  # that chose the recipe


@dataclass(frozen=True, kw_only=True)
class EncoderData(ReportData):
    """Of classification and embeddings, by encoders and decoders alike. N evaluation texts, C
    labels, H hidden size."""

    data: DataReport
    truth: NDArray[np.bool_] | None  # (N, C) labels given in the data; None for embeddings
    reference: NDArray[np.float32]  # (N, C) logits or (N, H) vectors of the Hugging Face model
    outputs: dict[str, NDArray[np.float32]]  # variant name -> the same shape


@dataclass(frozen=True, kw_only=True)
class DecoderData(ReportData):
    """Of generation."""

    data: ChatReport
    n_parameters: int
    n_texts: int  # whose tokens were compared
    n_targets: int  # of which the loss is the mean
    n_answers: int  # greedy answers of the reference


def report_data(context: Context, manifest: Manifest, recipe_yaml: str) -> ReportData:
    """Gather it from the context."""
    variants = list(context.variants.values())
    common: dict[str, Any] = dict(
        manifest=manifest,
        recipe_yaml=recipe_yaml,
        training={k: v for k, v in context.training.items() if k != "folder"},
        notes=tuple(context.notes),
        worst={v.name: v.worst for v in variants},
        limits={v.name: limits_of(context.recipe, v) for v in variants},
        failures={v.name: v.failures for v in variants},
        search=context.search,
    )
    if context.oracle is not None:
        assert context.chat
        oracle = context.oracle
        return DecoderData(
            **common,
            data=context.chat.report,
            n_parameters=oracle.n_parameters,
            n_texts=len(oracle.scored),
            n_targets=len(oracle.losses),
            n_answers=len(oracle.answers.ids),
        )
    assert context.task and context.data and context.reference is not None
    classifies = context.task.kind == "text-classification"
    return EncoderData(
        **common,
        data=context.data.report,
        truth=truth_matrix(context.task, context.data.eval) if classifies else None,
        reference=context.reference,
        outputs={v.name: v.outputs for v in variants if v.outputs is not None},
    )
