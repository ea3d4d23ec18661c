"""How tokens attend to each other in an encoder's last layer, which a student of any width can
learn: relations of queries, of keys and of values (Wang et al. 2020, arXiv:2012.15828).

B rows, T tokens, N real tokens, H outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from edgelm.compiler.distil import losses
from edgelm.compiler.distil.pruning import names_of, shape_of

PARTS = ("attn_q", "attn_k", "attn_v")


@contextmanager
def watched(model: Any) -> Iterator[dict[str, Tensor]]:
    """What the products of the last layer give (B, T, H) in a run of the model inside, by part."""
    seen: dict[str, Tensor] = {}

    def keep(part: str, output: Tensor) -> None:
        seen[part] = output

    with ExitStack() as hooks:
        for part in PARTS:
            handle = _last(model, part).register_forward_hook(
                lambda m, x, output, part=part: keep(part, output)
            )
            hooks.callback(handle.remove)
        yield seen


def width(model: Any) -> int:
    """H."""
    return int(_last(model, PARTS[0]).weight.shape[0])


def answers(seen: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Of a run's real tokens, mask (B, T) -> (N, 3, H)."""
    return torch.stack([seen[part] for part in PARTS], 2)[mask.bool()]


def loss(model: Any, seen: dict[str, Tensor], said: Tensor, mask: Tensor) -> Tensor:
    """Of a student's run and its teacher's `answers` -> the mean over queries, keys and values.

    The relations are of as many heads as divide both widths, at most those of the student."""
    teacher = said.new_zeros(*mask.shape, *said.shape[1:], dtype=torch.float32)  # (B, T, 3, H)
    teacher[mask.bool()] = said.float()
    n_heads = common_heads(width(model), said.shape[-1], shape_of(model.config).heads)
    parts = [
        losses.relations(seen[part], teacher[:, :, i], mask, n_heads)
        for i, part in enumerate(PARTS)
    ]
    return torch.stack(parts).mean()


def common_heads(one: int, other: int, most: int) -> int:
    """The largest number up to `most` that divides both widths."""
    both = math.gcd(one, other)
    return max(n for n in range(1, most + 1) if both % n == 0)


def _last(model: Any, part: str) -> Any:
    body = getattr(model, model.base_model_prefix, model)
    i = shape_of(model.config).layers - 1
    return body.get_submodule(names_of(model.config).part(i, part))
