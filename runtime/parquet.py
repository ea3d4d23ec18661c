"""Rows of a parquet file, a batch at a time. Needs the extra `parquet`.

Files exported from a Hugging Face hub keep the names of class labels in their metadata; numbers of
such columns become names.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from edgelm.runtime.errors import DataError, MissingExtra
from edgelm.runtime.lines import reading

BATCH_ROWS = 1024


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, column -> value) of each row. Raises DataError, MissingExtra."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as err:
        raise MissingExtra("pyarrow", "parquet") from err
    row = 0
    try:
        with reading(path), path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            schema = file.schema_arrow
            for name, count in Counter(cast("list[str]", schema.names)).items():
                if count > 1:
                    raise DataError(f"two columns are named {name!r}", path=path)
            classes = class_names(schema.metadata or {})
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    row += 1
                    for name, known in classes.items():
                        values[name] = name_class(values[name], known, path, row)
                    yield row, values
    except arrow.ArrowException as err:
        raise DataError(f"cannot be read as parquet: {err}", path=path) from err
    except UnicodeDecodeError as err:
        raise DataError(f"not valid UTF-8: {err}", path=path, row=row + 1) from err


def class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, from what `datasets` writes into a file's metadata."""
    try:
        features: Any = json.loads(metadata[b"huggingface"])["info"]["features"]
        found: dict[str, list[str]] = {}
        for column, feature in cast("dict[str, Any]", features).items():
            inner: Any = feature.get("feature", feature)
            if inner.get("_type") == "ClassLabel":
                found[column] = [str(name) for name in inner["names"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}  # other tools write other metadata
    return found


def name_class(value: Any, names: list[str], path: Path, row: int) -> Any:
    """The name of a class number, or of each in a list; -1 is how `datasets` writes none."""
    if isinstance(value, list):
        return [name_class(item, names, path, row) for item in cast("list[Any]", value)]
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise DataError(f"class {value}, but only {len(names)} are named", path=path, row=row)
    return names[value]
