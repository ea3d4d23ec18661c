"""A seeded sample of the texts that a student learns on, by which parts of a model are weighed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgelm.compiler.distil.teacher import ROW
from edgelm.compiler.distil.trainer import Collate

Row = dict[str, Any]

TEXTS, BATCH = 512, 16
TOKENS, TOKEN_BATCH = 16_384, 4  # of generation, whose texts are longer


def text_batches(rows: Sequence[Row], tokenizer: Any, seed: int) -> Iterator[Row]:
    """Padded batches of at most TEXTS rows, those of like length together."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(rows), min(TEXTS, len(rows)), replace=False)
    for part in _parts([rows[i] for i in chosen], BATCH):
        yield dict(tokenizer.pad(part, return_tensors="pt"))


def token_batches(rows: Sequence[Row], collate: Collate, seed: int) -> Iterator[Row]:
    """The same of rows of generation, about TOKENS tokens together."""
    picked: list[Row] = []
    n_tokens = 0
    for i in np.random.default_rng(seed).permutation(len(rows)):
        picked.append(rows[i])
        n_tokens += len(rows[i]["input_ids"])
        if n_tokens >= TOKENS:
            break
    for part in _parts(picked, TOKEN_BATCH):
        yield collate(part)


def _parts(picked: Sequence[Row], n: int) -> Iterator[list[Row]]:
    bare = [{k: v for k, v in row.items() if k != ROW} for row in picked]
    bare.sort(key=lambda row: len(row["input_ids"]))
    for at in range(0, len(bare), n):
        yield bare[at : at + n]
