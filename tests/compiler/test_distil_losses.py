"""Losses of distillation beside torch's own kl_div, formulas written out, and exact identities."""

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from edgelm.compiler.distil import losses
from edgelm.compiler.distil.teacher import token_values


def logits(*shape: int, seed: int, requires_grad: bool = False) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3
    return made.requires_grad_(requires_grad)


def test_soft_labels_are_torchs_divergence_with_hintons_factor():
    student, teacher = logits(6, 5, seed=0, requires_grad=True), logits(6, 5, seed=1)
    found = losses.soft_labels(student, teacher, 2.0)
    expected = 4 * kl_div(
        log_softmax(student / 2, -1), softmax(teacher / 2, -1), reduction="batchmean"
    )
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, student)
    # of T^2 KL in the student's logits: T (q - p) / B
    by_hand = 2 * (softmax(student / 2, -1) - softmax(teacher / 2, -1)) / 6
    torch.testing.assert_close(gradient, by_hand)


def test_soft_sets_are_a_divergence_of_two_outcomes_for_each_label():
    student, teacher = logits(4, 3, seed=2), logits(4, 3, seed=3)
    p, q = torch.sigmoid(teacher / 3), torch.sigmoid(student / 3)
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(losses.soft_sets(student, teacher, 3.0), 9 * by_hand.sum(1).mean())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_of_whole_distributions(direction: losses.Direction):
    student, teacher = logits(7, 50, seed=4), logits(7, 50, seed=5)
    log_p, log_q = log_softmax(teacher, -1), log_softmax(student, -1)
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    found = losses.token_divergence(student, log_p, direction=direction)
    expected = kl_div(second, first, reduction="batchmean", log_target=True)
    torch.testing.assert_close(found, expected)
    kept = torch.from_numpy(token_values(teacher)["log_probs"])
    rounded = losses.token_divergence(student, kept, direction=direction)
    torch.testing.assert_close(rounded, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kept_tokens_and_the_rest(direction: losses.Direction):
    student, teacher = logits(7, 3000, seed=6, requires_grad=True), logits(7, 3000, seed=7)
    said = {k: torch.from_numpy(v) for k, v in token_values(teacher).items()}
    found = losses.token_divergence(student, said["log_probs"], said["ids"], direction=direction)
    ids = teacher.topk(64).indices.numpy()
    p, q = (softmax(x.detach().double(), -1).numpy() for x in (teacher, student))
    pairs = []
    for row in range(7):
        parts = [(p[row, i], q[row, i]) for i in ids[row]]
        parts.append((1 - sum(a for a, _ in parts), 1 - sum(b for _, b in parts)))
        pairs.append(parts if direction == "forward" else [(b, a) for a, b in parts])
    expected = np.mean([sum(a * np.log(a / b) for a, b in parts) for parts in pairs])
    assert found.item() == pytest.approx(expected, rel=5e-3)
    whole = losses.token_divergence(student, log_softmax(teacher, -1), direction=direction)
    assert 0 < found.item() <= whole.item()
    (gradient,) = torch.autograd.grad(found, student)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_teacher_that_is_sure_gives_finite_losses(direction: losses.Direction):
    sure = torch.full((2, 2000), -200.0)
    sure[:, 3] = 200.0
    student = logits(2, 2000, seed=8, requires_grad=True)
    said = {k: torch.from_numpy(v) for k, v in token_values(sure).items()}
    found = losses.token_divergence(student, said["log_probs"], said["ids"], direction=direction)
    (gradient,) = torch.autograd.grad(found, student)
    assert torch.isfinite(found) and torch.isfinite(gradient).all()
    own = losses.token_divergence(sure, said["log_probs"], said["ids"], direction=direction)
    assert float(own) == pytest.approx(0, abs=1e-6)


def test_relations_see_only_real_tokens_and_take_unequal_sizes():
    student, teacher = logits(2, 5, 8, seed=9), logits(2, 5, 12, seed=10)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = losses.relations(student, teacher, mask, n_heads=2)
    rows = []
    for b, n in ((0, 5), (1, 3)):
        for t in range(n):
            for h in range(2):
                s, u = student[b, :n, 4 * h : 4 * h + 4], teacher[b, :n, 6 * h : 6 * h + 6]
                p, q = softmax(u @ u[t] / 6**0.5, -1), softmax(s @ s[t] / 2, -1)
                rows.append((p * (p / q).log()).sum())
    torch.testing.assert_close(found, torch.stack(rows).mean())
    other = teacher.clone()
    other[1, 3:] = 7.0
    torch.testing.assert_close(losses.relations(student, other, mask, 2), found)
    assert float(losses.relations(teacher, teacher, mask, 3)) == 0


def test_vectors_and_hidden_states():
    a, b = logits(4, 6, seed=11), logits(4, 6, seed=12)
    cosines = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(losses.vectors(a, b), 1 - cosines.mean())
    torch.testing.assert_close(losses.hidden_states(a, b), ((a - b) ** 2).sum() / (b**2).sum())
