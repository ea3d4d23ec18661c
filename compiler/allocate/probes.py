"""Scalars of a model's answers whose squared gradients are what the task loses to second order.

- next tokens and labels: the loss of answers drawn from the model itself. Its squared gradients are
  in the mean the Fisher information, the second derivatives of the KL divergence.
- labels too: the margin between what is given and the runner-up, as a share of itself, with a
  random sign: half its squared gradients bounds how often a label flips (Chebyshev).
- vectors: a random direction of the vector of length one; the mean square is twice 1 - cosine.

B texts, T tokens, C labels, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.compiler.hf import pool
from edgelm.runtime.engine import TokenBatch
from edgelm.runtime.manifest import Task, TextLimits

if TYPE_CHECKING:
    import torch

    from edgelm.targets.curvature import Loss

LEAST_MARGIN = 0.5  # of logits: texts closer to a flip than that count no more


def token_losses(
    model: Any, samples: Iterable[tuple[Sequence[int], Sequence[int]]], seed: int
) -> Iterator[Loss]:
    """Of token ids and the places of the tokens that count, none of them 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def loss(ids: Sequence[int], targets: Sequence[int]) -> torch.Tensor:
        before = torch.tensor([t - 1 for t in targets])
        given = torch.tensor([list(ids[: targets[-1]])])
        logits = model(input_ids=given, use_cache=False, logits_to_keep=before).logits[0].float()
        return _drawn_loss(logits, generator)

    for ids, targets in samples:
        yield (lambda ids=ids, targets=targets: loss(ids, targets)), len(targets)


def text_losses(
    model: Any, task: Task, text: TextLimits, batches: Iterable[TokenBatch], seed: int
) -> Iterator[Loss]:
    """Of whole texts: classifiers and embedders."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def loss(batch: TokenBatch) -> torch.Tensor:
        _, T = batch.input_ids.shape
        mask = (torch.arange(T) < torch.from_numpy(batch.lengths)[:, None]).long()
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(batch.input_ids).long(),
            "attention_mask": mask,
        }
        if text.type_ids:
            inputs["token_type_ids"] = torch.from_numpy(batch.type_ids).long()
        out = model(**inputs)
        if task.kind == "feature-extraction":
            return _direction(pool(out.last_hidden_state, mask, task.pooling), generator)
        if task.problem == "multi_label":
            return _drawn_labels(out.logits, task.threshold, generator)
        return _drawn_loss(out.logits, generator) + _signed(_margins(out.logits), generator)

    for batch in batches:
        yield (lambda batch=batch: loss(batch)), len(batch.lengths)


def _drawn_loss(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy (B, C) with one answer a row drawn from the model, summed."""
    import torch

    drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")


def _drawn_labels(
    logits: torch.Tensor, threshold: float, generator: torch.Generator
) -> torch.Tensor:
    """The same of labels that are given one by one, (B, C), margins included."""
    import torch

    drawn = torch.bernoulli(logits.detach().sigmoid(), generator=generator)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")
    return loss + _signed((logits - float(np.log(threshold / (1 - threshold)))).abs(), generator)


def _margins(logits: torch.Tensor) -> torch.Tensor:
    """(B, C) -> (B,): how far the given label is before the next."""
    top = logits.topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]


def _signed(margins: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch

    signs = torch.randint(0, 2, margins.shape, generator=generator) * 2 - 1
    return (signs * margins / margins.detach().clamp(min=LEAST_MARGIN)).sum()


def _direction(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch

    directions = torch.randn(vectors.shape, generator=generator)
    return (torch.nn.functional.normalize(vectors, dim=-1) * directions).sum()
