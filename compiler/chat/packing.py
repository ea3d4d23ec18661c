"""Samples as rows of a training batch: several in a row that do not see each other, or padded.

A packed row has no attention mask; transformers tells its samples apart by position ids, which
begin at 0 again with each. Padding is one more such sample, without targets.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Sequence
from typing import Any

from edgelm.compiler.chat.samples import Sample

IGNORED = -100  # the label of a token that is no target
ROW_TOKENS = 512  # of a packed row: the time of attention grows with its square
MAX_DIFF = 1e-3  # of logits, packed and alone, relative to the largest; seen are about 1e-6

Row = dict[str, list[int]]


def pack(samples: Sequence[Sample], max_tokens: int) -> list[list[int]]:
    """Which samples go together in one row of at most `max_tokens`; the longest are placed first,
    each where the least room is left over (best-fit decreasing)."""
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for i in order:
        n = len(samples[i].ids)
        at = bisect.bisect_left(room, (n, -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = max_tokens, len(rows)
            rows.append([])
        rows[row].append(i)
        bisect.insort(room, (left - n, row))
    return rows


def packed_rows(samples: Sequence[Sample], max_tokens: int) -> list[Row]:
    """Rows of ids, labels and position ids, of at most `max_tokens` and no longer than the longest
    sample or ROW_TOKENS."""
    n_tokens = min(max_tokens, max(ROW_TOKENS, *(len(s.ids) for s in samples)))
    return [_joined([samples[i] for i in row]) for row in pack(samples, n_tokens)]


def single_rows(samples: Sequence[Sample]) -> list[Row]:
    """One sample a row, to be padded."""
    return [{"input_ids": list(s.ids), "labels": _labels(s)} for s in samples]


def n_predicted(row: Row) -> int:
    """Targets of a row that the model predicts: all but one at its very start."""
    return sum(label != IGNORED for label in row["labels"][1:])


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """A torch batch (B, T), padded on the right."""
    import torch

    T = max(len(row["input_ids"]) for row in rows)
    gaps = [T - len(row["input_ids"]) for row in rows]
    ids = [row["input_ids"] + [pad_id] * gap for row, gap in zip(rows, gaps, strict=True)]
    labels = [row["labels"] + [IGNORED] * gap for row, gap in zip(rows, gaps, strict=True)]
    batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    if "position_ids" in rows[0]:
        places = [
            row["position_ids"] + list(range(gap)) for row, gap in zip(rows, gaps, strict=True)
        ]
        return {**batch, "position_ids": torch.tensor(places)}
    masks = [[1] * (T - gap) + [0] * gap for gap in gaps]
    return {**batch, "attention_mask": torch.tensor(masks)}


def can_pack(model: Any, samples: Sequence[Sample], n_tokens: int = 16) -> bool:
    """Whether this model gives a sample in a packed row the logits that it gives it alone.

    Found by trying: a model with a state of its own, or with a mask of its own making, may not."""
    import torch

    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    first, second = (samples[i].ids[:n_tokens] for i in (0, len(samples) // 2))
    row = _joined([Sample(ids, (True,) * len(ids)) for ids in (first, second)])
    with torch.inference_mode():
        packed = model(
            input_ids=torch.tensor([row["input_ids"]]),
            position_ids=torch.tensor([row["position_ids"]]),
            use_cache=False,
        ).logits[0, len(first) :]
        alone = model(input_ids=torch.tensor([second]), use_cache=False).logits[0]
    return bool((packed - alone).abs().max() <= MAX_DIFF * max(1.0, float(alone.abs().max())))


def _joined(samples: Sequence[Sample]) -> Row:
    return {
        "input_ids": [i for s in samples for i in s.ids],
        "labels": [label for s in samples for label in _labels(s)],
        "position_ids": [t for s in samples for t in range(len(s.ids))],
    }


def _labels(sample: Sample) -> list[int]:
    both = zip(sample.ids, sample.targets, strict=True)
    return [i if is_target else IGNORED for i, is_target in both]
