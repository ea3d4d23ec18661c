"""What is counted from the outputs, in numpy. N texts, C labels, H hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.report.data import EncoderData
from edgelm.runtime.manifest import Task, Variant
from edgelm.runtime.metrics import main_metric
from edgelm.runtime.predictions import label_matrix, probabilities

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LabelScore:
    """How well one label is recognized; NaN where there is nothing to divide by."""

    label: str
    support: int  # texts that carry it
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Texts whose score lies in one range."""

    confidence: float  # their mean score
    accuracy: float
    n: int


def best_variant(data: EncoderData) -> Variant | None:
    """Of the variants that ran: the highest metric, then the closest, then the smallest."""
    ran = [v for v in data.manifest.variants if v.name in data.outputs]
    name = main_metric(data.manifest.task)

    def rank(variant: Variant) -> tuple[float, float, int]:
        parity = variant.parity
        close = None if parity is None else (parity.agreement or parity.mean_cosine)
        metric = variant.metrics.get(name)
        return (_known(metric), _known(close), -variant.size_bytes)

    return max(ran, key=rank, default=None)


def _known(value: float | None) -> float:
    return float(value) if value is not None and np.isfinite(value) else -1.0


def label_scores(task: Task, truth: Bools, outputs: Floats) -> list[LabelScore]:
    """One for each label, in the task's order. `truth` and `outputs` (N, C)."""
    given = label_matrix(task, outputs)
    support, answered = truth.sum(axis=0), given.sum(axis=0)
    hit = (truth & given).sum(axis=0)
    return [
        LabelScore(label, int(s), _ratio(h, a), _ratio(h, s), _ratio(2 * h, s + a))
        for label, s, a, h in zip(task.labels, support, answered, hit, strict=True)
    ]


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def worst_first(scores: list[LabelScore]) -> list[LabelScore]:
    """By F1, the label with more texts first among equals; labels without an F1 come last."""
    return sorted(scores, key=lambda s: (np.isnan(s.f1), s.f1 if s.f1 == s.f1 else 0, -s.support))


def confusion(truth: Bools, outputs: Floats) -> Counts:
    """Texts by (label in the data, label answered), (C, C). Texts without a label are left out."""
    C = truth.shape[1]
    labelled = truth.any(axis=1)
    matrix = np.zeros((C, C), np.int64)
    np.add.at(matrix, (truth[labelled].argmax(axis=1), outputs[labelled].argmax(axis=1)), 1)
    return matrix


def confused_pairs(matrix: Counts) -> list[tuple[int, int, int]]:
    """(label in the data, label answered, texts) of all mistakes, commonest first."""
    off = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    rows, columns = np.nonzero(off)
    found = [
        (int(i), int(j), int(n)) for i, j, n in zip(rows, columns, off[rows, columns], strict=True)
    ]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def reliability(task: Task, truth: Bools, outputs: Floats, n_bins: int = 10) -> list[Bin]:
    """Texts by the score of their answer, in ranges of equal width; empty ranges are left out."""
    used = truth.any(axis=1) & np.isfinite(outputs).all(axis=1)
    truth, outputs = truth[used], outputs[used]
    if not len(outputs):
        return []
    confidence = probabilities(task, outputs).max(axis=1).astype(np.float64)
    correct = truth.argmax(axis=1) == outputs.argmax(axis=1)
    index = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    inside = [index == i for i in range(n_bins)]
    return [
        Bin(float(confidence[m].mean()), float(correct[m].mean()), int(m.sum()))
        for m in inside
        if m.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean distance of score and accuracy, weighed by texts."""
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n if n else float("nan")
