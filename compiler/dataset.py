"""Texts to train and evaluate on, and what was noticed in reading them; kept as jsonl + json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.compiler.sections import DataConfig
from edgelm.compiler.split import Overlap
from edgelm.runtime.columns import Columns
from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example
from edgelm.runtime.files import sha256_file, storage_errors
from edgelm.runtime.lines import reading
from edgelm.runtime.manifest import Problem
from edgelm.runtime.records import is_folder
from edgelm.runtime.schema import SchemaError, decode, encode


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

    def save(self, folder: Path) -> None:
        """Write dataset.json, train.jsonl and eval.jsonl. Raises StorageError."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "train.jsonl", self.train)
            _write(folder / "eval.jsonl", self.eval)
            head = {
                "labels": self.labels,
                "problem": self.problem,
                "pair": self.pair,
                "report": encode(self.report),
            }
            (folder / "dataset.json").write_bytes(_json(head))

    @staticmethod
    def load(folder: Path) -> Dataset:
        """Read what `save` wrote. Raises DataError."""
        try:
            head = decode(_Head, json.loads((folder / "dataset.json").read_bytes()))
            train = tuple(_read(folder / "train.jsonl"))
            held_out = tuple(_read(folder / "eval.jsonl"))
        except (OSError, ValueError, KeyError, TypeError, SchemaError) as err:
            raise DataError(f"not a stored data set: {err}", path=folder) from err
        return Dataset(train, held_out, head.labels, head.problem, head.pair, head.report)


@dataclass(frozen=True)
class _Head:
    labels: tuple[str, ...]
    problem: Problem
    pair: bool
    report: DataReport


def digest_files(config: DataConfig) -> str:
    """sha256 over names and contents of the files that a DataConfig names. Raises DataError."""
    digest = hashlib.sha256()
    for role in ("train", "eval"):
        name = getattr(config, role)
        if name is None:
            continue
        root = Path(name)
        with reading(root):
            folder = is_folder(root)
            files = sorted(p for p in root.rglob("*") if p.is_file()) if folder else [root]
            for file in files:
                inside = file.relative_to(root).as_posix() if folder else file.name
                digest.update(_json([role, inside, sha256_file(file)]))
    return digest.hexdigest()


def _write(path: Path, examples: tuple[Example, ...]) -> None:
    with path.open("wb") as stream:
        for e in examples:
            labels = None if e.labels is None else list(e.labels)
            stream.write(_json([e.text, e.pair, labels, e.score, str(e.path), e.row]))


def _read(path: Path) -> Iterator[Example]:
    paths: dict[str, Path] = {}  # one object for all rows of a file
    with path.open("rb") as stream:
        for line in stream:
            text, pair, labels, score, name, row = json.loads(line)
            where = paths.setdefault(name, Path(name))
            yield Example(text, pair, None if labels is None else tuple(labels), score, where, row)


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n").encode()
