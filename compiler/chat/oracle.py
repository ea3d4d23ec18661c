"""What the Hugging Face model says of the evaluation data, kept in a folder.

    scored.json       texts as token ids, which tokens count, of which the distribution is kept
    losses.npy        negative log-likelihood of each token that counts, in nats
    log_probs.npy     kept distributions (n, V), float16; read from the disk, not into memory
    top.npy           the likeliest token of each of them
    answers.json      prompts and the greedy answers to them
    golden.json       texts that are checked again on the device
    facts.json        how many parameters the model has; notes on the data
    base_losses.npy   as losses.npy, of the model before fine-tuning; where it was fine-tuned

V is the vocabulary's size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.samples import Sample
from edgelm.runtime.schema import decode, encode

T = TypeVar("T")
MIN_TEXTS = 64  # over which the tokens are spread, where there are so many
MAX_TARGETS = 512  # of one text: their distributions are in memory at once


@dataclass(frozen=True)
class Scored:
    """A text that is scored."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]  # positions of the tokens that count, rising, none of them 0
    kept: tuple[bool, ...]  # whether the distribution that predicts each target is kept

    @property
    def n_kept(self) -> int:
        """How many distributions are kept."""
        return sum(self.kept)


@dataclass(frozen=True)
class Prompt:
    """A prompt that is answered."""

    ids: tuple[int, ...]
    text: str  # for people


@dataclass(frozen=True)
class Answers:
    """Greedy answers of one model, end tokens left out."""

    max_tokens: int
    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Oracle:
    """All of it."""

    scored: tuple[Scored, ...]
    losses: NDArray[np.float32]  # (N,) of all targets, in the order of `scored`
    log_probs: NDArray[np.float16]  # (n, V)
    top: NDArray[np.int32]  # (n,)
    answers: Answers
    n_parameters: int
    notes: tuple[str, ...]  # on rows that were cut or left out
    base_loss: float | None  # mean loss of the model before fine-tuning, on the same tokens

    @property
    def loss(self) -> float:
        """Mean loss of a token that counts."""
        return float(self.losses.mean(dtype=np.float64))


def choose_scored(samples: Sequence[Sample], n_tokens: int) -> list[Scored]:
    """Texts from the whole of `samples`, with `n_tokens` distributions to keep between them.

    MIN_TEXTS texts are taken, more where they hold too few tokens; each text gives the same number
    of tokens as far as it has them, spread over its targets."""
    found = [
        (tuple(s.ids), tuple(t for t, on in enumerate(s.targets) if on and t > 0)) for s in samples
    ]
    found = [(ids, tuple(spread(targets, MAX_TARGETS))) for ids, targets in found if targets]
    if not found:
        return []
    n = min(MIN_TEXTS, len(found))
    while n < len(found) and sum(len(t) for _, t in spread(found, n)) < n_tokens:
        n = min(2 * n, len(found))
    chosen = spread(found, n)
    shares = _fair_shares([len(targets) for _, targets in chosen], n_tokens)
    return [
        Scored(ids, targets, _marks(len(targets), share))
        for (ids, targets), share in zip(chosen, shares, strict=True)
    ]


def spread(items: Sequence[T], n: int) -> list[T]:
    """n of the items, evenly; all of them where there are no more."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _fair_shares(sizes: Sequence[int], total: int) -> list[int]:
    """At most `total` between all: each the same, or its size where that is less."""
    shares = [0] * len(sizes)
    left = total
    waiting = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for done, i in enumerate(waiting):
        shares[i] = min(sizes[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares


def _marks(n: int, share: int) -> tuple[bool, ...]:
    """`share` of n, spread evenly."""
    chosen = {i * n // share for i in range(share)}
    return tuple(i in chosen for i in range(n))


def write_json(path: Path, value: object) -> None:
    """Plain data or dataclasses."""
    path.write_text(json.dumps(encode(value), ensure_ascii=False), encoding="utf-8")


def load_oracle(folder: Path) -> Oracle:
    """Read what the reference pass wrote; the distributions stay on the disk."""
    scored, answers, facts = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("scored.json", "answers.json", "facts.json")
    )
    base = folder / "base_losses.npy"
    return Oracle(
        scored=tuple(decode(Scored, s) for s in scored),
        losses=np.load(folder / "losses.npy"),
        log_probs=np.load(folder / "log_probs.npy", mmap_mode="r"),
        top=np.load(folder / "top.npy"),
        answers=decode(Answers, answers),
        n_parameters=facts["n_parameters"],
        notes=tuple(facts["notes"]),
        base_loss=float(np.load(base).mean(dtype=np.float64)) if base.is_file() else None,
    )
