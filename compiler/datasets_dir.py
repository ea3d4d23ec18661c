"""Rows of a directory that `datasets` wrote with save_to_disk: one split, or several by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from edgelm.runtime.errors import DataError, MissingExtra
from edgelm.runtime.parquet import name_class
from edgelm.runtime.records import Record

Part = Literal["train", "eval"]

EVAL_SPLITS = ("validation", "valid", "dev", "eval", "test")  # the first that is there


def has_eval_split(path: Path) -> bool:
    """Whether the directory holds evaluation data beside its training data."""
    folder = _load(path)
    return isinstance(folder, dict) and any(name in folder for name in EVAL_SPLITS)


def datasets_records(path: Path, part: Part) -> Iterator[Record]:
    """The rows of one part, numbered from 1; class numbers become the names of their classes.

    Raises DataError: damaged directory, no such split; MissingExtra without `datasets`.
    """
    split, where = _split(path, part)
    classes = {
        column: names
        for column, feature in split.features.items()
        if (names := getattr(getattr(feature, "feature", feature), "names", None)) is not None
    }
    for row, values in enumerate(split, 1):
        for column, names in classes.items():
            values[column] = name_class(values[column], names, where, row)
        yield Record(where, row, values)


def _split(path: Path, part: Part) -> tuple[Any, Path]:
    folder = _load(path)
    if not isinstance(folder, dict):
        return folder, path
    names = ("train",) if part == "train" else EVAL_SPLITS
    found = next((name for name in names if name in folder), None)
    if found is None and len(folder) == 1:
        found = next(iter(folder))
    if found is None:
        raise DataError(
            f"no split for {part} among {', '.join(map(str, folder))}", path=path,
            hint=f"name the folder of one split inside; expected is {' or '.join(names)}",
        )  # fmt: skip
    return folder[found], path / found


def _load(path: Path) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
        arrow: Any = importlib.import_module("pyarrow")
    except ImportError as err:
        raise MissingExtra("datasets", "compile") from err
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as err:
        raise DataError(f"cannot be read by `datasets`: {err}", path=path) from err
