"""The scalars whose squared gradients stand for what a task loses, against that loss itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.compiler.allocate.probes import text_losses, token_losses
from edgelm.runtime.engine import TokenBatch
from edgelm.runtime.manifest import Task, TextLimits

N, C = 3, 5  # predictions, answers
TEXT = TextLimits(64)
LABELS = tuple("abcde")


class Shifted(torch.nn.Module):
    """Answers that are weights themselves."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.values, last_hidden_state=self.values[:, None])


def answers(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(N, C, generator=torch.Generator().manual_seed(seed))


def batch() -> TokenBatch:
    ids = np.ones((N, 1), np.int32)
    return TokenBatch(ids, np.ones(N, np.int32), np.zeros_like(ids))


def half_squares(model: Shifted, losses: Any, shift: torch.Tensor) -> float:
    """Half the mean square of the scalars' changes under a small shift, a prediction."""
    found: list[float] = []
    for loss, n in losses:
        model.zero_grad()
        loss().backward()
        assert model.values.grad is not None
        found.append(float((model.values.grad * shift).sum()) ** 2 / n)
    return 0.5 * float(np.mean(found))


def test_the_losses_of_drawn_tokens_stand_for_the_divergence() -> None:
    model, shift = Shifted(answers()[None]), 0.01 * answers(1)
    before = answers().log_softmax(-1)
    after = (answers() + shift).log_softmax(-1)
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    samples = [([0] * (N + 1), list(range(1, N + 1)))] * 4000
    found = half_squares(model, token_losses(model, samples, seed=0), shift[None])
    assert found == pytest.approx(divergence, rel=0.1)


def test_labels_near_a_flip_weigh_more() -> None:
    task = Task("text-classification", LABELS)
    shift = 0.01 * answers(1)
    near = torch.zeros(N, C)
    near[:, 0] = 0.6  # one margin of 0.6, others far behind
    near[:, 2:] = -9.0
    far = near.clone()
    far[:, 0] = 6.0
    costs: list[float] = []
    for values in (near, far):
        model = Shifted(values)
        losses = text_losses(model, task, TEXT, [batch()] * 3000, seed=0)
        found = half_squares(model, losses, shift)
        p = values.softmax(-1)
        fisher = (p * shift**2).sum(-1) - (p * shift).sum(-1) ** 2
        margin = values[:, 0] - values[:, 1]
        flips = ((shift[:, 0] - shift[:, 1]) / margin) ** 2
        assert found == pytest.approx(0.5 * float((fisher + flips).mean()), rel=0.1)
        costs.append(found)
    assert costs[0] > 5 * costs[1]


def test_label_sets_stand_for_the_divergence_of_each_label() -> None:
    task = Task("text-classification", LABELS, problem="multi_label", threshold=0.5)
    values, shift = answers(), 0.01 * answers(1)
    model = Shifted(values)
    found = half_squares(model, text_losses(model, task, TEXT, [batch()] * 3000, seed=0), shift)
    p = values.sigmoid()
    expected = (p * (1 - p) + 1 / values.abs().clamp(min=0.5) ** 2) * shift**2
    assert found == pytest.approx(0.5 * float(expected.sum(-1).mean()), rel=0.1)


def test_random_directions_stand_for_the_cosine() -> None:
    task = Task("feature-extraction", pooling="mean")
    values, shift = answers(), 0.01 * answers(1)
    model = Shifted(values)
    found = half_squares(model, text_losses(model, task, TEXT, [batch()] * 3000, seed=0), shift)
    cosine = torch.nn.functional.cosine_similarity(values.double(), (values + shift).double())
    assert found == pytest.approx(float((1 - cosine).mean()), rel=0.1)
