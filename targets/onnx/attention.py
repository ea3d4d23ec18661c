"""One ONNX operator for each layer's attention.

An attention function registered with transformers writes contrib `MultiHeadAttention` instead of
the dozen operators (with IsNaN guards) that the sdpa graph becomes. Plain padding goes in as a
(B, T) mask; any other pattern (sliding window, causal) as an additive bias, computed once for all
layers that share it. Attention it cannot express raises Inexpressible; the caller then exports
the model's own sdpa.

Letters: B batch, N heads, G key-value heads, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

NAME = "edgelm_onnx"

# Smaller than any float32 logit yet finite: a row with nothing to attend to gives no NaN.
MASKED = -10000.0

# Arguments that change the result and that the operator has no place for.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask", "sinks")


class Inexpressible(Exception):
    """This model's attention does not fit the operator."""


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers. Calling it twice is harmless."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, N, T, D), key and value (B, G, T, D) -> (B, T, N, D)."""
    used = [name for name in _UNSUPPORTED if extra.get(name) is not None]
    if used or key.shape[-1] != value.shape[-1]:
        raise Inexpressible(f"attention with {', '.join(used) or 'unequal head sizes'}")
    B, N, T, D = query.shape
    repeat = N // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).reshape(B, x.shape[2], N * D)

    inputs: list[torch.Tensor | None] = [flat(query), flat(key), flat(value), None]
    if attention_mask is not None:
        # Input 4 is the (B, T) padding mask, input 5 the additive bias.
        inputs += [attention_mask] if attention_mask.ndim == 2 else [None, attention_mask]
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        inputs,
        attrs={
            "num_heads": N,
            "scale": float(D**-0.5 if scaling is None else scaling),
            "mask_filter_value": MASKED,
        },
        dtype=query.dtype,
        shape=(B, T, N * D),
        version=1,
    )
    return attended.reshape(B, T, N, D), None


def _mask(**arguments: Any) -> torch.Tensor | None:
    """int32 (B, T) where only padding is masked, else a float32 bias (B, 1, T, T)."""
    padding: torch.Tensor | None = arguments.get("attention_mask")
    if arguments.get("mask_function") is bidirectional_mask_function:
        return None if padding is None else padding.to(torch.int32)
    arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    allowed = sdpa_mask(**arguments)
    if allowed is None:
        raise Inexpressible("a mask that transformers leaves to the kernel")
    return torch.where(allowed, 0.0, MASKED)
