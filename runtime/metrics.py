"""Figures of merit, in numpy. N texts, C classes, H hidden size, V vocabulary, n tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.manifest import Task
from edgelm.runtime.predictions import label_matrix, normalize, probabilities

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def main_metric(task: Task) -> str:
    """The name of the metric that drops are measured in."""
    if task.kind == "feature-extraction":
        return "spearman"
    return "accuracy" if task.problem == "single_label" else "micro_f1"


def classification_metrics(task: Task, truth: Bools, logits: Floats) -> dict[str, float]:
    """`truth` (N, C) given labels, `logits` (N, C). Accuracy counts whole label sets."""
    predicted = label_matrix(task, logits)
    hit = (truth & predicted).sum(axis=0)
    # 2 TP / (true + predicted) is F1; a label that neither has nor gets a text does not count
    total = truth.sum(axis=0) + predicted.sum(axis=0)
    used = total > 0
    f1 = 2 * hit[used] / total[used]
    return {
        "accuracy": float((truth == predicted).all(axis=1).mean()),
        "macro_f1": float(f1.mean()) if used.any() else 1.0,
        "micro_f1": float(2 * hit.sum() / max(1, total.sum())),
    }


def agreement(task: Task, a: Floats, b: Floats) -> Bools:
    """Whether two sets of logits (N, C) give a text the same label or label set, (N,)."""
    return cast("Bools", (label_matrix(task, a) == label_matrix(task, b)).all(axis=1))


def kl_divergence(task: Task, reference: Floats, other: Floats) -> NDArray[np.float64]:
    """KL(reference || other) of each text in nats, (N, C), (N, C) -> (N,)."""
    p = np.clip(probabilities(task, reference).astype(np.float64), 1e-12, 1.0)
    q = np.clip(probabilities(task, other).astype(np.float64), 1e-12, 1.0)
    terms = p * np.log(p / q)
    if task.problem == "multi_label":  # a sum of binary divergences
        p, q = np.clip(1 - p, 1e-12, 1.0), np.clip(1 - q, 1e-12, 1.0)
        terms = terms + p * np.log(p / q)
    return np.maximum(terms.sum(axis=1), 0.0)


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosine of the rows, (N, H), (N, H) -> (N,)."""
    return (normalize(a) * normalize(b)).sum(axis=1)


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Rank correlation of two sequences, ties given their mean rank."""
    ranks = [_ranks(x) for x in (a, b)]
    ra, rb = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((ra**2).sum() * (rb**2).sum()))
    return float((ra * rb).sum()) / scale if scale else 0.0


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, (…, V) -> (…, V)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def token_divergence(
    reference: NDArray[np.floating], other: NDArray[np.floating]
) -> NDArray[np.float64]:
    """KL(reference || other) of each token in nats, logits or log-probabilities (n, V) -> (n,).

    Both are normalized here, so a reference that was kept in few digits gives no negative values,
    and its rounding enters squared."""
    p, q = log_softmax(reference), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(axis=1)


def perplexity(losses: NDArray[np.floating]) -> float:
    """exp of the mean negative log-likelihood of a token, in nats."""
    mean = float(np.mean(losses, dtype=np.float64))
    return math.inf if mean > 700 else math.exp(mean)  # a float64 ends at 709


def first_difference(a: Sequence[object], b: Sequence[object]) -> int | None:
    """Index of the first token at which two answers part, or character of two texts; None where
    they are equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
