"""Rows of data files, one at a time: csv, tsv, jsonl, json, txt, parquet, or a folder of these.

Everything but `.json` streams in constant memory. A row is named by the line it begins in (csv,
tsv, jsonl, txt), by its number (parquet) or by its place in the array (json), counted from 1.
Blank lines are passed over. `.gz` after a suffix is unpacked on the way, parquet excepted.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from edgelm.runtime.columns import Columns, find_columns
from edgelm.runtime.errors import DataError
from edgelm.runtime.lines import read_lines, reading, text_lines
from edgelm.runtime.tables import table_rows

MAX_JSON = 2**30  # bytes of a `.json`, which is read as a whole

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet")


@dataclass(frozen=True, slots=True)
class Record:
    """One row: the columns it has, with the file and the row a user would look up."""

    path: Path
    row: int
    values: dict[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file, or of the data files of a folder in order of their names.

    Raises DataError, naming file and row, for whatever cannot be read without guessing, and
    MissingExtra for parquet without pyarrow. Nothing is opened before the first row is asked for.
    """
    files = data_files(path)
    if files == [path]:
        yield from _read_file(path)
        return
    columns: frozenset[str] | None = None
    for file in files:
        for number, record in enumerate(_read_file(file)):
            if number == 0:
                found = frozenset(record.values)
                columns = found if columns is None else columns
                if found != columns:
                    raise DataError(
                        f"its columns {_names(found)} are not those of {files[0].name}, "
                        f"{_names(columns)}",
                        path=file,
                        hint="name one file, or keep other files out of the folder",
                    )
            yield record


def data_files(path: Path) -> list[Path]:
    """The file itself, or a folder's data files (`.txt` only where nothing else is). DataError."""
    if not is_folder(path):
        return [path]
    if is_datasets_dir(path):
        raise DataError(
            "a directory of the `datasets` package, which only the compiler reads", path=path,
            hint="export it, for example with dataset.to_csv(...)",
        )  # fmt: skip
    with reading(path):
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        known = [p for p in inside if data_suffix(p) in SUFFIXES and p.is_file()]
    files = [p for p in known if data_suffix(p) != ".txt"] or known
    if not files:
        raise DataError("no data file in it", path=path, hint=f"known are {' '.join(SUFFIXES)}")
    return files


def is_datasets_dir(path: Path) -> bool:
    """Whether the folder was written by `datasets`' save_to_disk. Raises DataError."""
    with reading(path):
        single = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
        return single or (path / "dataset_dict.json").is_file()


def is_folder(path: Path) -> bool:
    """Whether it is a folder, and not a file. Raises DataError where it is neither."""
    with reading(path):
        return stat.S_ISDIR(path.stat().st_mode)


def data_suffix(path: Path) -> str:
    """The suffix that tells the format, `.gz` taken off: `.csv` of `Train.CSV.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _read_file(path: Path) -> Iterator[Record]:
    suffix = data_suffix(path)
    if suffix in (".csv", ".tsv"):
        rows: Iterator[tuple[int, dict[str, Any]]] = table_rows(path, tabs=suffix == ".tsv")
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(path)
    elif suffix == ".json":
        rows = _json(path)
    elif suffix == ".txt":
        rows = _text_lines(path)
    elif suffix == ".parquet":
        from edgelm.runtime.parquet import parquet_rows

        rows = parquet_rows(path)
    else:
        raise DataError(
            f"unknown kind of file {suffix!r}", path=path, hint=f"known are {' '.join(SUFFIXES)}"
        )
    empty = True
    for row, values in rows:
        empty = False
        yield Record(path, row, values)
    if empty:
        raise DataError("no rows in it", path=path)


def _text_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, line in enumerate(text_lines(path), 1):
        if line.strip():
            yield row, {"text": line}


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield row, _object(_parse(line, path, row), path, row)


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """An array of objects, an object with one such array, or (a common habit) JSON lines."""
    if _is_json_lines(path):
        yield from _json_lines(path)
        return
    document = _parse("".join(read_lines(path, limit=MAX_JSON)), path, None)
    if isinstance(document, dict):
        values = list(cast("dict[str, Any]", document).values())
        arrays = [v for v in values if isinstance(v, list) and _holds_objects(cast("Any", v))]
        document = arrays[0] if len(arrays) == 1 else [cast("Any", document)]
    if not isinstance(document, list):
        raise DataError("neither an array of objects nor an object", path=path)
    for row, item in enumerate(cast("list[Any]", document), 1):
        yield row, _object(item, path, row)


def _is_json_lines(path: Path) -> bool:
    lines = (line for line in read_lines(path, limit=MAX_JSON) if line.strip())
    first, second = next(lines, ""), next(lines, None)
    if second is None or not first.lstrip().startswith("{"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _holds_objects(array: list[Any]) -> bool:
    return bool(array) and all(isinstance(item, dict) for item in array)


def _parse(text: str, path: Path, row: int | None) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {twice!r} stands twice")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError as err:
        raise DataError("JSON nested too deep", path=path, row=row) from err
    except json.JSONDecodeError as err:
        where = err.lineno if row is None else row
        raise DataError(
            f"not valid JSON: {err.msg} at column {err.colno}", path=path, row=where
        ) from err
    except ValueError as err:
        raise DataError(f"not valid JSON: {err}", path=path, row=row) from err


def _object(value: Any, path: Path, row: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"a row must be a JSON object, not {json_name(value)}", path=path, row=row)
    return cast("dict[str, Any]", value)


def json_name(value: object) -> str:
    """What a value is, in words a user of JSON knows."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    more = {list: "a list", dict: "an object", type(None): "null"}
    return {**names, **more}.get(type(value), type(value).__name__)


def _names(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


__all__ = [
    "SUFFIXES",
    "Columns",
    "Record",
    "data_files",
    "data_suffix",
    "find_columns",
    "is_datasets_dir",
    "is_folder",
    "json_name",
    "read_records",
]
