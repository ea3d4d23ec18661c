"""About how long a search takes, before it begins: floating-point operations by the rate of this
machine's matrix products."""

from __future__ import annotations

import time

import numpy as np

from edgelm.compiler.context import Context, as_text
from edgelm.compiler.training import method, settled, settled_distil
from edgelm.compiler.tune.sizes import Weights
from edgelm.runtime.examples import Example

VARIANT_S = 10.0  # to lower a variant, open its engine and measure it, beside the texts themselves
EFFICIENCY = 0.4  # share of the rate of plain products that a model reaches
CHARACTERS = 4.0  # of a token
SAMPLE = 200  # rows whose length is looked at


def products_per_s(seconds: float = 0.3) -> float:
    """Floating-point operations a second of float32 matrix products here."""
    import torch

    a, b = torch.randn(512, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    n, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.mm(a, b)
        n += 1
    return n * 2 * 512 * 1024 * 1024 / (time.perf_counter() - started)


def training_s(context: Context, weights: Weights, rate: float) -> float:
    """About how long the fine-tuning of the context's recipe takes, with all its epochs."""
    config = settled(context.recipe)
    assert config.epochs is not None
    # forward 2, gradients of activations 2, and of weights 2 operations a weight and token
    per_weight = 4 if method(context.recipe) == "lora" else 6
    n_tokens = _n_tokens(context, "train") * config.epochs
    return per_weight * weights.multiplied * n_tokens / (rate * EFFICIENCY)


def learning_s(context: Context, weights: Weights, rate: float) -> float:
    """About how long a student of that many weights learns from its teacher."""
    n_tokens = _n_tokens(context, "train") * settled_distil(context.recipe).epochs
    return 6 * weights.multiplied * n_tokens / (rate * EFFICIENCY)


def variant_s(context: Context, weights: Weights, rate: float) -> float:
    """About how long one variant takes to be made, verified and measured."""
    operations = 2 * weights.multiplied * _n_tokens(context, "eval")
    recover = context.recipe.recover
    if recover.method == "train":
        operations += 6 * weights.multiplied * _n_tokens(context, "train") * recover.epochs
    return VARIANT_S + operations / (rate * EFFICIENCY)


def _n_tokens(context: Context, split: str) -> float:
    data = context.data or context.chat
    assert data is not None and context.text is not None
    rows = getattr(data, split)
    some = rows[:: max(1, len(rows) // SAMPLE)]
    lengths = [len(str(as_text(r) if isinstance(r, Example) else r.content())) for r in some]
    mean = float(np.mean(lengths)) / CHARACTERS if some else 0.0
    return len(rows) * min(mean, context.text.max_tokens)
