"""What `predict` answers, and how raw outputs become it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.manifest import Task


@dataclass(frozen=True)
class Classification:
    """One label."""

    label: str
    score: float  # probability of the label
    scores: dict[str, float] | None = None  # all labels, when asked for
    truncated: bool = False  # the text was longer than the bundle's max_tokens


@dataclass(frozen=True)
class LabelSet:
    """The labels whose probability reaches the bundle's threshold, likeliest first."""

    labels: tuple[str, ...]
    label_scores: tuple[float, ...]
    scores: dict[str, float] | None = None
    truncated: bool = False


@dataclass(frozen=True, eq=False)
class Embedding:
    """A sentence vector."""

    vector: NDArray[np.float32]  # (H,), of length one where the bundle says so
    truncated: bool = False


@dataclass(frozen=True)
class Usage:
    """Tokens of one generation."""

    prompt_tokens: int
    answer_tokens: int  # the end token included
    reused_tokens: int = 0  # of the prompt, that the engine still held


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer, and what else could have stood there."""

    token: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()  # the likeliest tokens, likeliest first


@dataclass(frozen=True)
class Generation:
    """An answer of a generation model."""

    text: str
    finish_reason: Literal["stop", "length"]  # it ended itself, or max_tokens was reached
    usage: Usage
    stop: str | None = None  # the stop string that ended it
    logprobs: tuple[TokenScore, ...] | None = None  # when asked for


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes. The last one has finish_reason and usage."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None
    stop: str | None = None
    logprobs: tuple[TokenScore, ...] | None = None


Prediction = Classification | LabelSet | Embedding


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities over the last axis, (N, C) -> (N, C)."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of each label by itself, (N, C) -> (N, C)."""
    return np.exp(-np.logaddexp(np.float32(0), -logits)).astype(np.float32)


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one, (N, H) -> (N, H); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(1e-12))


def probabilities(task: Task, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) -> (N, C): softmax for one label, sigmoid for label sets."""
    return softmax(logits) if task.problem == "single_label" else sigmoid(logits)


def label_matrix(task: Task, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which labels are given, (N, C): the largest, or all that reach the threshold."""
    if task.problem == "multi_label":
        return sigmoid(logits) >= task.threshold
    given = np.zeros(logits.shape, bool)
    given[np.arange(len(logits)), logits.argmax(axis=1)] = True
    return given


def answers(
    task: Task, values: NDArray[np.float32], truncated: list[bool], *, all_scores: bool = False
) -> list[Prediction]:
    """Raw outputs (N, C) or (N, H) to N predictions."""
    if task.kind == "feature-extraction":
        vectors = normalize(values) if task.normalize else values
        return [Embedding(v, t) for v, t in zip(vectors, truncated, strict=True)]
    probs = probabilities(task, values)
    scores: list[dict[str, float] | None] = [None] * len(values)
    if all_scores:
        scores = [dict(zip(task.labels, row, strict=True)) for row in probs.tolist()]
    if task.problem == "multi_label":
        return _label_sets(task, values, probs, scores, truncated)
    best = values.argmax(axis=1)
    top = probs[np.arange(len(best)), best].tolist()
    return [
        Classification(task.labels[i], p, s, t)
        for i, p, s, t in zip(best.tolist(), top, scores, truncated, strict=True)
    ]


def _label_sets(
    task: Task,
    values: NDArray[np.float32],
    probs: NDArray[np.float32],
    scores: list[dict[str, float] | None],
    truncated: list[bool],
) -> list[Prediction]:
    given = label_matrix(task, values)
    result: list[Prediction] = []
    for row, mask, all_of_row, cut in zip(probs, given, scores, truncated, strict=True):
        order = [int(i) for i in np.argsort(-row, kind="stable") if mask[i]]
        result.append(
            LabelSet(
                tuple(task.labels[i] for i in order),
                tuple(float(row[i]) for i in order),
                all_of_row,
                cut,
            )
        )
    return result


def to_json(prediction: Prediction | Generation) -> dict[str, Any]:
    """A plain mapping for JSON; scores to 6 digits."""
    if isinstance(prediction, Generation):
        return {k: v for k, v in asdict(prediction).items() if v is not None}
    if isinstance(prediction, Embedding):
        data: dict[str, Any] = {"vector": [round(float(x), 7) for x in prediction.vector]}
    elif isinstance(prediction, LabelSet):
        pairs = zip(prediction.labels, prediction.label_scores, strict=True)
        data = {"labels": [{"label": n, "score": round(s, 6)} for n, s in pairs]}
    else:
        data = {"label": prediction.label, "score": round(prediction.score, 6)}
    if not isinstance(prediction, Embedding) and prediction.scores is not None:
        data["scores"] = {k: round(v, 6) for k, v in prediction.scores.items()}
    if prediction.truncated:
        data["truncated"] = True
    return data
