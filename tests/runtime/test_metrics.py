"""Figures of merit against slow loops and formulas from the books."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.manifest import Task
from edgelm.runtime.metrics import (
    agreement,
    classification_metrics,
    cosine,
    first_difference,
    kl_divergence,
    log_softmax,
    main_metric,
    perplexity,
    spearman,
    token_divergence,
)

SINGLE = Task("text-classification", ("a", "b", "c", "d"))
MULTI = Task("text-classification", ("a", "b", "c", "d"), "multi_label", threshold=0.5)
EMBED = Task("feature-extraction", dimensions=3)


def test_main_metric() -> None:
    assert [main_metric(t) for t in (SINGLE, MULTI, EMBED)] == ["accuracy", "micro_f1", "spearman"]


def random_case(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (12, 4)).astype(np.float32)
    truth = rng.random((12, 4)) < 0.3
    if task.problem == "single_label":
        truth = np.eye(4, dtype=bool)[rng.integers(0, 3, 12)]  # nobody has the last label
    return truth, logits


def given_labels(task: Task, row: list[float]) -> set[int]:
    if task.problem == "single_label":
        return {row.index(max(row))}
    return {i for i, x in enumerate(row) if 1 / (1 + math.exp(-x)) >= task.threshold}


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_against_loops(task: Task, seed: int) -> None:
    truth, logits = random_case(task, seed)
    pairs = [
        (set(np.flatnonzero(t).tolist()), given_labels(task, x))
        for t, x in zip(truth, logits.tolist(), strict=True)
    ]
    counts = [[0, 0, 0] for _ in range(4)]  # hits, wrongly given, missed
    for wanted, found in pairs:
        for c in range(4):
            counts[c][0] += c in wanted and c in found
            counts[c][1] += c not in wanted and c in found
            counts[c][2] += c in wanted and c not in found
    each = [2 * h / (2 * h + w + m) for h, w, m in counts if h + w + m]
    h, w, m = (sum(c[i] for c in counts) for i in range(3))
    assert classification_metrics(task, truth, logits) == pytest.approx(
        {
            "accuracy": sum(a == b for a, b in pairs) / len(pairs),
            "macro_f1": sum(each) / len(each),
            "micro_f1": 2 * h / (2 * h + w + m),
        }
    )


def test_metrics_when_no_label_is_true_or_given() -> None:
    nothing = classification_metrics(MULTI, np.zeros((2, 4), bool), np.full((2, 4), -5, np.float32))
    assert nothing == {"accuracy": 1.0, "macro_f1": 1.0, "micro_f1": 0.0}


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
def test_kl_divergence_and_agreement_against_loops(task: Task) -> None:
    _, a = random_case(task, 1)
    _, b = random_case(task, 2)
    found = kl_divergence(task, a, b)
    for row, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        if task.problem == "single_label":
            p = [math.exp(v) / sum(map(math.exp, x)) for v in x]
            q = [math.exp(v) / sum(map(math.exp, y)) for v in y]
            expected = sum(i * math.log(i / j) for i, j in zip(p, q, strict=True))
        else:
            p = [1 / (1 + math.exp(-v)) for v in x]
            q = [1 / (1 + math.exp(-v)) for v in y]
            expected = sum(
                i * math.log(i / j) + (1 - i) * math.log((1 - i) / (1 - j))
                for i, j in zip(p, q, strict=True)
            )
        assert found[row] == pytest.approx(expected, rel=1e-4)
        same = given_labels(task, x) == given_labels(task, y)
        assert bool(agreement(task, a, b)[row]) is same
    assert kl_divergence(task, a, a).max() == 0.0


def test_cosine_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    expected = [
        sum(x * y for x, y in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
        for u, v in zip(a.tolist(), b.tolist(), strict=True)
    ]
    np.testing.assert_allclose(cosine(a, b), expected, atol=1e-6)


@given(st.permutations(range(8)))
def test_spearman_without_ties_is_the_formula(other: list[int]) -> None:
    n = 8
    distance = sum((i - x) ** 2 for i, x in enumerate(other))
    expected = 1 - 6 * distance / (n * (n * n - 1))
    found = spearman(np.arange(n, dtype=np.float64), np.array(other, np.float32) * 10 - 3)
    assert found == pytest.approx(expected)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # ranks of a: 1, 2.5, 2.5, 4; of b: 1, 2, 3.5, 3.5; their correlation is 3.75 / 4.5
    a = np.array([0.0, 1.0, 1.0, 2.0])
    b = np.array([5.0, 6.0, 7.0, 7.0])
    assert spearman(a, b) == pytest.approx(3.75 / 4.5)
    assert spearman(a, np.ones(4)) == 0.0


def test_token_divergence_is_the_sum_over_the_vocabulary() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 3, (5, 30)), rng.normal(0, 3, (5, 30))
    for row, x, y in zip(token_divergence(a, b), a, b, strict=True):
        p = [math.exp(v) / sum(map(math.exp, x)) for v in x]
        q = [math.exp(v) / sum(map(math.exp, y)) for v in y]
        assert row == pytest.approx(sum(s * math.log(s / t) for s, t in zip(p, q, strict=True)))
    assert log_softmax(a) == pytest.approx(np.log(np.exp(a) / np.exp(a).sum(1, keepdims=True)))
    assert (log_softmax(a)[2] == log_softmax(a[2])).all()


def test_a_reference_in_half_precision_is_as_good_as_equal() -> None:
    logits = np.random.default_rng(5).normal(0, 4, (50, 2000)).astype(np.float32)
    kept = log_softmax(logits).astype(np.float16)
    found = token_divergence(kept, logits + np.float32(3))  # a shift of all logits is nothing
    assert (found >= 0).all()
    assert found.max() < 1e-5
    assert np.isnan(token_divergence(kept[:1], np.full((1, 2000), np.nan))).all()


def test_perplexity_is_the_geometric_mean() -> None:
    p = np.array([0.5, 0.1, 0.9])
    assert perplexity(-np.log(p)) == pytest.approx(1 / (0.5 * 0.1 * 0.9) ** (1 / 3))
    assert perplexity(np.array([1e4])) == math.inf
    assert math.isnan(perplexity(np.array([math.nan])))


@pytest.mark.parametrize(
    ("a", "b", "at"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [4], 0)],
)
def test_first_difference(a: list[int], b: list[int], at: int | None) -> None:
    assert first_difference(a, b) == at
    assert first_difference(b, a) == at
