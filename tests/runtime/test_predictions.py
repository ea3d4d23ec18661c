"""Raw outputs to answers, against slow or hand-made values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgelm.runtime.manifest import Task
from edgelm.runtime.predictions import (
    Classification,
    Embedding,
    LabelSet,
    answers,
    normalize,
    sigmoid,
    softmax,
    to_json,
)

SINGLE = Task("text-classification", ("a", "b", "c"))
MULTI = Task("text-classification", ("a", "b", "c"), "multi_label", threshold=0.6)
LOGITS = arrays(np.float32, (2, 3), elements=st.floats(-50, 50, width=32))


@given(LOGITS)
def test_softmax_and_sigmoid_against_math(logits: np.ndarray) -> None:
    for row, soft, each in zip(logits.tolist(), softmax(logits), sigmoid(logits), strict=True):
        total = sum(math.exp(x - max(row)) for x in row)
        np.testing.assert_allclose(soft, [math.exp(x - max(row)) / total for x in row], atol=1e-6)
        np.testing.assert_allclose(each, [1 / (1 + math.exp(-x)) for x in row], rtol=1e-5)
    assert sigmoid(logits).dtype == np.float32


def test_logits_of_any_size_give_finite_probabilities() -> None:
    logits = np.array([[1e4, -1e4, 0]], np.float32)
    assert softmax(logits).tolist() == [[1.0, 0.0, 0.0]]
    assert sigmoid(logits).tolist() == [[1.0, 0.0, 0.5]]


def test_normalize_by_hand() -> None:
    vectors = np.array([[3, 4], [0, 0], [-2, 0]], np.float32)
    np.testing.assert_allclose(normalize(vectors), [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-7)


def test_one_label() -> None:
    values = np.log(np.array([[1, 2, 1], [8, 1, 1]], np.float32))
    first, second = answers(SINGLE, values, [False, True])
    assert isinstance(first, Classification)
    assert isinstance(second, Classification)
    assert (first.label, first.scores, first.truncated) == ("b", None, False)
    assert first.score == pytest.approx(0.5)
    assert (second.label, second.truncated) == ("a", True)
    assert second.score == pytest.approx(0.8)
    (full,) = answers(SINGLE, values[:1], [False], all_scores=True)
    assert isinstance(full, Classification)
    assert full.scores == pytest.approx({"a": 0.25, "b": 0.5, "c": 0.25})


def test_label_sets_hold_what_reaches_the_threshold_likeliest_first() -> None:
    odds = np.array([[1.5, 9, 1.4], [0.1, 0.1, 0.1]], np.float32)  # p = odds / (1 + odds)
    task = Task("text-classification", ("a", "b", "c"), "multi_label", threshold=0.6 - 1e-6)
    first, second = answers(task, np.log(odds), [False, False], all_scores=True)
    assert isinstance(first, LabelSet)
    assert isinstance(second, LabelSet)
    assert first.labels == ("b", "a")
    assert first.label_scores == pytest.approx((0.9, 0.6))
    assert first.scores == pytest.approx({"a": 0.6, "b": 0.9, "c": 1.4 / 2.4})
    assert second.labels == ()


@pytest.mark.parametrize(("unit", "vector"), [(True, [0.6, 0.8]), (False, [3, 4])])
def test_embeddings(unit: bool, vector: list[float]) -> None:
    task = Task("feature-extraction", normalize=unit, dimensions=2)
    (answer,) = answers(task, np.array([[3, 4]], np.float32), [False])
    assert isinstance(answer, Embedding)
    np.testing.assert_allclose(answer.vector, vector, atol=1e-7)


def test_to_json() -> None:
    third = 1 / 3
    assert to_json(Classification("a", third)) == {"label": "a", "score": 0.333333}
    assert to_json(Classification("a", third, {"a": third}, truncated=True)) == {
        "label": "a",
        "score": 0.333333,
        "scores": {"a": 0.333333},
        "truncated": True,
    }
    assert to_json(LabelSet(("b", "a"), (0.9, third))) == {
        "labels": [{"label": "b", "score": 0.9}, {"label": "a", "score": 0.333333}]
    }
    assert to_json(LabelSet((), ())) == {"labels": []}
    assert to_json(Embedding(np.array([0.5, third], np.float32))) == {"vector": [0.5, 0.3333333]}
