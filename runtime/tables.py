"""Rows of a csv or tsv file: strict RFC 4180, with one rule of its own for tsv.

Tab-separated files come in two dialects: with quotes as in csv, or with quotes that mean nothing.
Reading the second as the first silently swallows hundreds of rows behind one stray quote, so a tsv
in which every line has as many tabs as the header is read line by line; a file that both dialects
accept with different rows is refused.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgelm.runtime.errors import DataError
from edgelm.runtime.lines import read_lines

MAX_FIELD = 16 * 2**20  # characters of one field, line breaks included

Row = tuple[int, list[str]]  # line the row begins in, fields

_QUOTING = (
    'a field that begins with a quote must end with one, and doubles those inside: "5"" tall"; '
    "one that holds a line break or a carriage return must stand in quotes"
)


def table_rows(path: Path, *, tabs: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> field) of each row. Raises DataError."""
    rows = _tsv(path) if tabs else _csv(path, _sniff(path))
    first, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    _check_header(names, path, first)
    for row, fields in rows:
        if len(fields) != len(names):
            raise DataError(
                f"{len(fields)} fields, but the header names {len(names)} columns", path=path,
                row=row, hint="a field that holds the separator must stand in quotes",
            )  # fmt: skip
        # A column without a name (an index that pandas wrote) is left out.
        yield row, {name: value for name, value in zip(names, fields, strict=True) if name}


def _check_header(names: list[str], path: Path, row: int) -> None:
    hint = "the first line must hold the names of the columns"
    if not any(names):
        raise DataError("the header names no column", path=path, row=row, hint=hint)
    for name, count in Counter(names).items():
        if name and count > 1:
            raise DataError(f"two columns are named {name!r}", path=path, row=row, hint=hint)


def _sniff(path: Path) -> str:
    """The separator of a csv: a semicolon or a tab only where the header has no comma."""
    header = next((line for line in read_lines(path) if line.strip()), "")
    return next((sep for sep in ",;\t" if sep in header), ",")


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    if csv.field_size_limit() < MAX_FIELD:  # the module's default is 128 KiB
        csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    while True:
        row = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            raise DataError(f"not valid CSV: {err}", path=path, row=row, hint=_QUOTING) from err
        if fields:
            yield row, fields


def _tsv(path: Path) -> Iterator[Row]:
    lines_fit, has_quotes = _line_shape(path)
    if not has_quotes:
        return _plain(path)
    if not lines_fit:
        return _csv(path, "\t")
    across = _field_across_lines(path)
    if across is not None:
        raise DataError(
            "a quote opens here and closes lines later: this can be one field or many rows",
            path=path, row=across, hint="write the file as csv, or take this quote out",
        )  # fmt: skip
    return _plain(path)


def _plain(path: Path) -> Iterator[Row]:
    for row, line in enumerate(read_lines(path), 1):
        line = line.rstrip("\r\n")
        if line:
            yield row, [_unquote(field) for field in line.split("\t")]


def _unquote(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner:
        return field
    return field[1:-1].replace('""', '"')


def _line_shape(path: Path) -> tuple[bool, bool]:
    """Whether all lines have equally many tabs, and whether a field begins with a quote."""
    tabs: set[int] = set()
    has_quotes = False
    for line in read_lines(path):
        if line.strip("\r\n"):
            tabs.add(line.count("\t"))
            has_quotes = has_quotes or line.startswith('"') or '\t"' in line
    return len(tabs) <= 1, has_quotes


def _field_across_lines(path: Path) -> int | None:
    """The first row that spans lines when quotes are read as in csv; None where they cannot be."""
    found: int | None = None
    width = 0
    before = 0
    reader = csv.reader(read_lines(path), delimiter="\t", strict=True)
    try:
        for fields in reader:
            width = width or len(fields)
            if fields and len(fields) != width:
                return None
            if found is None and reader.line_num > before + 1:
                found = before + 1
            before = reader.line_num
    except csv.Error:
        return None
    return found
