"""Which files the data comes from, and their rows, whatever the rows are about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgelm.compiler.datasets_dir import EVAL_SPLITS, Part, datasets_records, has_eval_split
from edgelm.compiler.sections import DataConfig
from edgelm.runtime.errors import DataError
from edgelm.runtime.records import Record, data_files, is_datasets_dir, is_folder, read_records


def data_paths(config: DataConfig, trained: bool) -> tuple[Path | None, Path | None]:
    """(training, evaluation); a `datasets` directory may be both. Raises DataError."""
    if config.train is None and (trained or config.eval is None):
        what, flag = ("training", "--train") if trained else ("evaluation", "--eval")
        raise DataError(f"there is no {what} data", hint=f"name it with {flag} FILE")
    train = None if config.train is None else Path(config.train)
    if config.eval is not None:
        return train, Path(config.eval)
    assert train is not None
    brings_eval = is_folder(train) and is_datasets_dir(train) and has_eval_split(train)
    return train, train if brings_eval else None


def open_records(path: Path, part: Part) -> Iterator[Record]:
    """The rows of a file, a folder, or a split of a `datasets` directory. Raises DataError."""
    if is_folder(path) and is_datasets_dir(path):
        return datasets_records(path, part)
    _refuse_splits(path)
    return read_records(path)


def _refuse_splits(path: Path) -> None:
    """A folder of train.csv and test.csv is not one data set: reading both would train on both."""
    if not is_folder(path):
        return
    starts = {file: file.name.lower().split(".")[0].split("-")[0] for file in data_files(path)}
    train = [file.name for file, start in starts.items() if start == "train"]
    other = [file.name for file, start in starts.items() if start in EVAL_SPLITS]
    if train and other:
        raise DataError(
            f"it holds both {train[0]} and {other[0]}", path=path,
            hint="name the files one by one with --train and --eval",
        )  # fmt: skip
