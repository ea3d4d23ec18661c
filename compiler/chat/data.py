"""The data of a generation compile: conversations or texts, read, checked and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.compiler.chat.conversation import Conversation, Kind, find_kind, read_row
from edgelm.compiler.data import overlap_notes
from edgelm.compiler.datasets_dir import Part
from edgelm.compiler.sections import DataConfig
from edgelm.compiler.sources import data_paths, open_records
from edgelm.compiler.split import Overlap, drop_overlap, stratified_split
from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example

SHOWN = 5  # overlaps kept in the report


@dataclass(frozen=True)
class ChatReport:
    """What the report says of the data."""

    kind: Kind  # of the training rows; of the evaluation's where those are none
    columns: tuple[str, ...]
    n_train: int
    n_eval: int
    n_overlap: int  # evaluation rows left out because what they ask stands in the training data
    overlap_examples: tuple[Overlap, ...]  # the first few of them
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ChatData:
    """The rows of one compile."""

    train: tuple[Conversation, ...]
    eval: tuple[Conversation, ...]
    report: ChatReport

    def digest(self) -> str:
        """sha256 of all that decides a training: contents in their order, not where they stood."""
        digest = hashlib.sha256()
        for part in (self.train, self.eval):
            digest.update(b"part\n")
            for row in part:
                text = json.dumps(row.content(), ensure_ascii=False, sort_keys=True, default=str)
                digest.update(text.encode() + b"\n")
        return digest.hexdigest()


def load_chat_data(config: DataConfig, *, trained: bool, seed: int) -> ChatData:
    """Read training and evaluation data.

    Without evaluation data a seeded part of the training data is held out (a directory of
    `datasets` may bring a split of its own). Rows that ask the same, whatever is answered, stay on
    one side; evaluation rows whose question stands in the training data are left out, counted and
    reported. Not trained, training data is optional.

    Raises DataError, with file and row, for what cannot be read without guessing, for a
    conversation without an answer, and when nothing is left to evaluate on. MissingExtra for
    parquet or `datasets` without their packages.
    """
    train_path, eval_path = data_paths(config, trained)
    train, found = _read(config, train_path, "train") if train_path else ([], None)
    notes: list[str] = []
    overlaps: list[Overlap] = []
    if eval_path is None:
        kept, chosen = stratified_split(_keys(train), config.eval_fraction, seed)
        n = len(train)
        train, held_out = _rows(train, kept), _rows(train, chosen)
        notes.append(f"{len(held_out)} of {n} rows were held out to evaluate on (seed {seed})")
    else:
        held_out, eval_found = _read(config, eval_path, "eval")
        found = found or eval_found
        n = len(held_out)
        chosen, overlaps = drop_overlap(_keys(train), _keys(held_out))
        held_out = _rows(held_out, chosen)
        notes += overlap_notes(overlaps, n)
    assert found is not None
    if not held_out:
        why = "all of it stands in the training data" if overlaps else "too few to hold one out"
        raise DataError(
            f"nothing is left to evaluate on: {why}", path=config.eval or config.train,
            hint="give other data with --eval FILE",
        )  # fmt: skip
    kind, columns = found
    report = ChatReport(
        kind=kind,
        columns=tuple(columns.values()),
        n_train=len(train),
        n_eval=len(held_out),
        n_overlap=len(overlaps),
        overlap_examples=tuple(overlaps[:SHOWN]),
        notes=tuple(notes),
    )
    return ChatData(tuple(train), tuple(held_out), report)


def _read(
    config: DataConfig, path: Path, part: Part
) -> tuple[list[Conversation], tuple[Kind, dict[str, str]]]:
    asked: Kind | None = None if config.kind == "auto" else config.kind
    found: tuple[Kind, dict[str, str]] | None = None
    rows: list[Conversation] = []
    for record in open_records(path, part):
        if found is None:
            found = find_kind(list(record.values), asked, config.text, record.path)
        rows.append(read_row(record, *found))
    if found is None:
        raise DataError("no rows in it", path=path)
    return rows, found


def _keys(rows: Sequence[Conversation]) -> list[Example]:
    """What each row asks, as the text that split and overlap go by."""
    return [Example(row.asked, None, None, None, row.path, row.row) for row in rows]


def _rows(rows: Sequence[Conversation], chosen: Sequence[Example]) -> list[Conversation]:
    places = {(example.path, example.row) for example in chosen}
    return [row for row in rows if (row.path, row.row) in places]


__all__ = ["ChatData", "ChatReport", "Conversation", "Kind", "load_chat_data"]
