"""Texts with their labels, out of the rows of a data file.

A text must be text: nothing is turned into a string by guessing, except that every cell of a csv or
tsv is text. Labels may be text, whole numbers or true/false and become text; a set of labels is a
list, or, in a csv or tsv, one cell with separators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgelm.runtime.columns import Columns, find_columns
from edgelm.runtime.errors import DataError
from edgelm.runtime.records import Record, data_suffix, json_name, read_records

SET_COLUMNS = ("labels", "tags")  # a csv column of such a name may hold sets without being asked


@dataclass(frozen=True, slots=True)
class Example:
    """One text (or pair) with what is known of it, and the row it came from."""

    text: str
    pair: str | None
    labels: tuple[str, ...] | None  # exactly one unless multi-label; None: not asked for
    score: float | None
    path: Path
    row: int


@dataclass(frozen=True)
class Examples:
    """All examples of a file or folder."""

    examples: list[Example]
    columns: Columns
    multi_label: bool


def read_examples(
    path: Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    score: str | None = None,
    multi_label: bool | None = None,
    label_separator: str = ";",
    need_label: bool,
) -> Examples:
    """Read the examples of a file or folder; see `collect_examples`. Raises DataError."""
    return collect_examples(
        read_records(path), path=path, text=text, pair=pair, label=label, score=score,
        multi_label=multi_label, label_separator=label_separator, need_label=need_label,
    )  # fmt: skip


def collect_examples(
    records: Iterable[Record],
    *,
    path: Path,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    score: str | None = None,
    multi_label: bool | None = None,
    label_separator: str = ";",
    need_label: bool,
) -> Examples:
    """Check and collect the examples of `records`.

    Columns are those of the first record. Where not `need_label`, labels are read only from a
    named column and may be missing, and scores are read for pairs. `multi_label` None lets the data
    decide: lists are sets, and so are the cells of a csv column "labels" or "tags" where one holds
    the separator. Raises DataError with the row: text missing, empty or not text; a row without
    label; values of the wrong kind.
    """
    columns: Columns | None = None
    examples: list[Example] = []
    found: list[Any] = []  # label values as they stand, decided upon when all are known
    for record in records:
        if columns is None:
            columns = find_columns(
                list(record.values), text=text, pair=pair, label=label, score=score,
                need_label=need_label, path=path,
            )  # fmt: skip
        examples.append(_example(record, columns))
        if columns.label is not None:
            found.append(record.values.get(columns.label))
    if columns is None:
        raise DataError("no rows in it", path=path)
    if columns.label is None:
        return Examples(examples, columns, multi_label is True)
    reader = _Labels(columns.label, bool(multi_label), multi_label, label_separator, need_label)
    if multi_label is None:
        reader.are_sets = reader.look_like_sets(found, examples)
    labelled = [
        Example(e.text, e.pair, reader.read(value, e), e.score, e.path, e.row)
        for e, value in zip(examples, found, strict=True)
    ]
    return Examples(labelled, columns, reader.are_sets)


def _example(record: Record, columns: Columns) -> Example:
    text = _text(record, columns.text, "text")
    pair = None if columns.pair is None else _text(record, columns.pair, "second text")
    score = None if columns.score is None else _score(record, columns.score)
    return Example(text, pair, None, score, record.path, record.row)


def _text(record: Record, column: str, what: str) -> str:
    value = record.values.get(column)
    if value is None:
        raise _fault(record, f"the {what} is missing (column {column!r})")
    if not isinstance(value, str):
        raise _fault(record, f"the {what} must be text, not {json_name(value)}")
    if not value.strip():
        raise _fault(record, f"the {what} is empty")
    check_unicode(value, f"the {what}", record)
    return value


def _score(record: Record, column: str) -> float:
    value = record.values.get(column)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            score = float(value)
        except (ValueError, OverflowError):
            score = math.nan
        if math.isfinite(score):
            return score
    raise _fault(record, f"the score in {column!r} must be a number, not {_shown(value)}")


@dataclass
class _Labels:
    """How the values of one label column become labels."""

    column: str
    are_sets: bool
    asked: bool | None
    separator: str
    needed: bool

    def look_like_sets(self, values: list[Any], examples: list[Example]) -> bool:
        if any(isinstance(value, list) for value in values):
            return True
        if self.column.strip().casefold() not in SET_COLUMNS or not self.separator:
            return False
        return any(
            isinstance(value, str) and self.separator in value and _is_table(example)
            for value, example in zip(values, examples, strict=True)
        )

    def read(self, value: Any, example: Example) -> tuple[str, ...] | None:
        if value is None or (value == "" and not (self.are_sets and _is_table(example))):
            if not self.needed:
                return None
            raise _fault(example, f"unlabelled: the column {self.column!r} holds nothing here")
        if not self.are_sets:
            if isinstance(value, list):
                raise _fault(example, "a list of labels, where each text is to have one label")
            return (self.one(value, example),)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return tuple(dict.fromkeys(self.one(item, example) for item in items))
        if isinstance(value, str) and (self.asked or _is_table(example)):
            parts = value.split(self.separator) if self.separator else [value]
            return tuple(dict.fromkeys(self.one(p, example) for p in parts if p.strip()))
        raise _fault(example, f"the labels must be a list here, not {_shown(value)}")

    def one(self, value: Any, example: Example) -> str:
        if not isinstance(value, (str, int)):
            raise _fault(example, f"a label must be text or a whole number, not {_shown(value)}")
        label = str(value).strip()
        if not label:
            raise _fault(example, "unlabelled: a label is blank")
        check_unicode(label, "the label", example)
        return label


def _is_table(example: Example) -> bool:
    return data_suffix(example.path) in (".csv", ".tsv")


def check_unicode(value: str, what: str, where: Record | Example) -> None:
    """Raise DataError for half a surrogate pair, which JSON can write and no tokenizer reads."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        code = f"\\u{ord(value[err.start]):04x}"
        raise _fault(
            where, f"{what} holds half a character ({code} without its other half)"
        ) from err


def _shown(value: object) -> str:
    return (
        f"{json_name(value)} ({value!r:.40})"
        if isinstance(value, (str, float))
        else json_name(value)
    )


def _fault(where: Record | Example, message: str) -> DataError:
    return DataError(message, path=where.path, row=where.row)
