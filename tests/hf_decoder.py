"""A decoder that is the Hugging Face model itself: slow, and obviously right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import Chunk


class HfDecoder:
    """A DecoderSession that computes each sequence anew in each call."""

    device = "cpu"

    def __init__(self, model: Any, n_slots: int = 1, context_tokens: int = 256) -> None:
        self._model = model
        self.n_slots, self.context_tokens = n_slots, context_tokens
        self.n_vocab: int = model.config.vocab_size
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.is_closed = False

    def extend(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        import torch

        rows = [np.empty((0, self.n_vocab), np.float32)]
        for chunk in chunks:
            held = self.slots[chunk.slot]
            held += chunk.ids.tolist()
            assert len(held) <= self.context_tokens
            with torch.inference_mode():
                logits = self._model(torch.tensor([held])).logits[0].numpy()
            rows.append(logits[len(held) - chunk.n_logits :])
        return np.concatenate(rows)

    def length(self, slot: int) -> int:
        return len(self.slots[slot])

    def truncate(self, slot: int, n_tokens: int) -> None:
        del self.slots[slot][n_tokens:]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self.slots[target] = self.slots[source][:n_tokens]

    def fork(self, n_slots: int, context_tokens: int) -> HfDecoder:
        return HfDecoder(self._model, n_slots, context_tokens)

    def close(self) -> None:
        self.is_closed = True
