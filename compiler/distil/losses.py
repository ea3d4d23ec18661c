"""Losses by which a student learns from its teacher: means, in nats where they are divergences.

Logits come as the models give them; gradients flow into the student's side alone.

Letters: B rows, C classes, N positions, V vocabulary, K kept tokens, T tokens, H hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, mse_loss

Direction = Literal["forward", "reverse"]
FLOOR = -30.0  # log-probabilities below are taken for it: reverse divergences stay finite


def divergence(log_p: Tensor, log_q: Tensor, dim: int = -1) -> Tensor:
    """KL(p || q) over `dim`; where p is 0 nothing is added, whatever q is."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim)


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) each -> T^2 KL(teacher || student) of both softened by the temperature T
    (Hinton et al. 2015, arXiv:1503.02531). T^2 keeps the gradients' size whatever T is."""
    log_p = log_softmax(teacher.float().detach() / temperature, -1)
    log_q = log_softmax(student.float() / temperature, -1)
    return temperature**2 * divergence(log_p, log_q).mean()


def soft_sets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same of multi-label logits (B, C), where each label is a yes or no of its own; summed
    over the labels."""
    x, y = teacher.float().detach() / temperature, student.float() / temperature
    log_p = torch.stack([logsigmoid(x), logsigmoid(-x)])
    log_q = torch.stack([logsigmoid(y), logsigmoid(-y)])
    return temperature**2 * divergence(log_p, log_q, dim=0).sum(-1).mean()


def token_divergence(
    student: Tensor,
    log_probs: Tensor,
    ids: Tensor | None = None,
    *,
    temperature: float = 1.0,
    direction: Direction = "forward",
) -> Tensor:
    """Logits (N, V) of the student at the positions that count, against the teacher's
    distributions, which were softened by the same temperature -> T^2 mean KL.

    With `ids` None `log_probs` are (N, V). Else they are (N, K + 1): of the tokens `ids` (N, K),
    and last of all others together. That is the divergence of both distributions with the others
    taken for one token, never more than the whole one.

    `forward` is KL(teacher || student), which covers all that the teacher may say; `reverse` is
    KL(student || teacher), which stays with what it says most (Gu et al. 2023, arXiv:2306.08543).
    """
    # normalized again after the rounding of float16, which so enters squared
    log_p = log_softmax(log_probs.float().detach().clamp(min=FLOOR), -1)
    log_q = log_softmax(student.float() / temperature, -1)
    if ids is not None:
        log_q = kept_and_rest(log_q, ids.long())
    if direction == "forward":
        return temperature**2 * divergence(log_p, log_q).mean()
    return temperature**2 * divergence(log_q, log_p).mean()


def kept_and_rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """(N, V) -> (N, K + 1): of the tokens `ids` (N, K), and of all others together."""
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest.clamp(min=FLOOR)], -1)


def hidden_states(student: Tensor, teacher: Tensor) -> Tensor:
    """States (N, H) of N real tokens each -> mean squared difference (Jiao et al. 2019,
    arXiv:1909.10351), as a share of the teacher's mean square; `relations` is for unequal sizes."""
    wanted = teacher.float().detach()
    return mse_loss(student.float(), wanted) / wanted.square().mean()


def relations(student: Tensor, teacher: Tensor, mask: Tensor, n_heads: int) -> Tensor:
    """States (B, T, Hs) and (B, T, Ht), mask (B, T) -> mean KL of how each token relates to the
    others of its row: the softmax of scaled products, in `n_heads` parts of the states (Wang et al.
    2020, arXiv:2012.15828). The sizes may differ: `n_heads` has to divide both."""
    log_p = _relation(teacher.float().detach(), mask, n_heads)
    log_q = _relation(student.float(), mask, n_heads)
    rows = divergence(log_p, log_q).mean(1)  # (B, T)
    return rows[mask.bool()].mean()


def _relation(states: Tensor, mask: Tensor, n_heads: int) -> Tensor:
    """(B, T, H) -> log-probabilities (B, n_heads, T, T)."""
    B, T, H = states.shape
    parts = states.reshape(B, T, n_heads, H // n_heads).transpose(1, 2)
    products = parts @ parts.transpose(-1, -2) / (H // n_heads) ** 0.5
    padding = ~mask.bool()[:, None, None, :]
    # finite, or padding would be 0 * (inf - inf)
    return log_softmax(products.masked_fill(padding, torch.finfo(products.dtype).min / 2), -1)


def vectors(student: Tensor, teacher: Tensor) -> Tensor:
    """Embeddings (B, H) each -> 1 - mean cosine."""
    cosine = torch.nn.functional.cosine_similarity(student.float(), teacher.float().detach())
    return 1 - cosine.mean()
