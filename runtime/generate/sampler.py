"""Logits to the next token, in numpy. V is the vocabulary's size.

Penalty, temperature, top-k, top-p and min-p are those of Hugging Face's `generate`, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.generate.options import GenerateOptions
from edgelm.runtime.metrics import Floats, log_softmax


class Mask(Protocol):
    """What an answer's form allows next."""

    def mask(self, logits: Floats) -> None:
        """Set the logits (V,) of tokens that are not allowed to minus infinity, in place."""
        ...


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the model, before any option changed it."""

    token_id: int
    logprob: float


class Sampler:
    """Picks one answer's tokens; holds its random state and the tokens seen so far."""

    def __init__(self, options: GenerateOptions, prompt: Iterable[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._penalizes = options.repetition_penalty != 1.0
        self._seen = set(prompt) if self._penalizes else set[int]()

    def pick(self, logits: Floats, mask: Mask | None = None) -> int:
        """The next token of `logits` (V,), which are left as they are."""
        options = self._options
        if self._penalizes or mask is not None:
            logits = logits.copy()
        if self._penalizes:
            _penalize(logits, self._seen, options.repetition_penalty)
        if mask is not None:
            mask.mask(logits)
        if options.temperature == 0 or options.top_k == 1:
            token = int(logits.argmax())
        else:
            token = self._draw(logits)
        if self._penalizes:
            self._seen.add(token)
        return token

    def _draw(self, logits: Floats) -> int:
        options, V = self._options, len(logits)
        ids: NDArray[np.intp] | None = None
        if 0 < options.top_k < V:
            kth = np.partition(logits, V - options.top_k)[V - options.top_k]
            ids = np.flatnonzero(logits >= kth)
            logits = logits[ids]
        exp = np.exp((logits - logits.max()) / options.temperature, dtype=np.float64)
        probs = exp / exp.sum()
        if options.top_p < 1:
            # Rarer tokens than this have less than 1 - top_p together, so the sum is reached
            # without them: few are left to sort.
            some = np.flatnonzero(probs >= (1 - options.top_p) / len(probs))
            order = some[np.argsort(-probs[some], kind="stable")]
            mass = np.cumsum(probs[order])
            kept = np.sort(order[: int(np.searchsorted(mass, options.top_p)) + 1])
            ids = kept if ids is None else ids[kept]
            probs = probs[kept]
        if options.min_p > 0:
            kept = np.flatnonzero(probs >= options.min_p * probs.max())
            ids = kept if ids is None else ids[kept]
            probs = probs[kept]
        mass = np.cumsum(probs)
        i = int(np.searchsorted(mass, self._random.random() * mass[-1], side="right"))
        i = min(i, len(mass) - 1)
        return int(i if ids is None else ids[i])


def _penalize(logits: Floats, seen: set[int], penalty: float) -> None:
    """Keskar et al. 2019 (arXiv:1909.05858): seen tokens become less likely, in place."""
    ids = np.fromiter(seen, np.intp, len(seen))
    ids = ids[ids < len(logits)]
    values = logits[ids]
    logits[ids] = np.where(values > 0, values / penalty, values * penalty)


def logprobs(logits: Floats, token: int, n: int) -> tuple[TokenLogprob, ...]:
    """The token's own log-probability first, then the `n` likeliest tokens', likeliest first."""
    values = log_softmax(logits)
    n = min(n, len(values))
    best = np.argpartition(-values, n - 1)[:n] if n else np.empty(0, np.intp)
    best = best[np.argsort(-values[best], kind="stable")]
    return tuple(TokenLogprob(int(i), float(values[i])) for i in (token, *best.tolist()))
