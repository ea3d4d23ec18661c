"""Texts to train and evaluate on, and what was noticed in reading them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from edgelm.compiler.split import Overlap
from edgelm.runtime.columns import Columns
from edgelm.runtime.examples import Example
from edgelm.runtime.manifest import Problem


@dataclass(frozen=True)
class DataReport:
    """What the report says of the data."""

    n_train: int
    n_eval: int
    n_overlap: int  # evaluation texts left out because they stand in the training data
    overlap_examples: tuple[Overlap, ...]  # the first few of them
    label_counts: dict[str, int]  # of the training texts; of the evaluation's where those have none
    notes: tuple[str, ...]
    columns: Columns


@dataclass(frozen=True)
class Dataset:
    """The data of one compile. `labels` is empty for feature-extraction."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    problem: Problem
    pair: bool
    report: DataReport

    def digest(self) -> str:
        """sha256 of all that decides a training: texts, labels and scores, not where they stood."""
        digest = hashlib.sha256()
        head = {"labels": self.labels, "problem": self.problem, "pair": self.pair}
        digest.update(_json(head))
        for name in ("train", "eval"):
            digest.update(_json(name))
            for example in getattr(self, name):
                digest.update(_json([example.text, example.pair, example.labels, example.score]))
        return digest.hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n").encode()
