"""Texts for `edgelm predict`, from a file of any length or from stdin, in constant memory."""

from __future__ import annotations

import codecs
import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from edgelm.runtime.columns import find_columns
from edgelm.runtime.errors import DataError
from edgelm.runtime.lines import MAX_LINE
from edgelm.runtime.records import read_records
from edgelm.runtime.tokenizer import Text

CHUNK = 1024  # texts that are sorted by length and answered together
Row = tuple[int, Text]  # number of the row or line, its text
Prompt = str | list[dict[str, Any]]  # a text, or messages
T = TypeVar("T")


def file_rows(path: Path, *, pair: bool, text: str | None, second: str | None) -> Iterator[Row]:
    """The texts of a txt, csv, tsv, jsonl, json or parquet file. Raises DataError."""
    columns = None
    for record in read_records(path):
        if columns is None:
            columns = find_columns(
                list(record.values), text=text, pair=second, need_label=False, path=path
            )
            if pair and columns.pair is None:
                raise DataError(
                    "the bundle answers pairs, and there is no column of second texts",
                    path=path,
                    hint="name it with --pair-column",
                )
        first = _text(record.values.get(columns.text), columns.text, record.path, record.row)
        if pair and columns.pair is not None:
            other = _text(record.values.get(columns.pair), columns.pair, record.path, record.row)
            yield record.row, (first, other)
        else:
            yield record.row, first


def prompt_rows(path: Path, text: str | None) -> Iterator[tuple[int, Prompt]]:
    """Prompts for a generation model: `messages` where a row has them, else a text column.

    Raises DataError."""
    column: str | None = None
    for record in read_records(path):
        messages = record.values.get("messages")
        if text is None and isinstance(messages, list):
            yield record.row, messages
            continue
        if column is None:
            names = list(record.values)
            column = find_columns(names, text=text, need_label=False, path=path).text
        yield record.row, _text(record.values.get(column), column, record.path, record.row)


def line_rows(stream: BinaryIO, *, pair: bool = False) -> Iterator[Row]:
    """One text a line; for pairs, a tab between the two. A byte order mark is taken off.

    Raises DataError, for a line over MAX_LINE too."""
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1 and raw.startswith(codecs.BOM_UTF8):
            raw = raw[len(codecs.BOM_UTF8) :]
            if not raw:
                return
        if len(raw) > MAX_LINE:
            raise DataError(f"the line is longer than {MAX_LINE} bytes", path="stdin", row=number)
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as err:
            raise DataError("not valid UTF-8", path="stdin", row=number) from err
        if not pair:
            yield number, line
            continue
        first, tab, second = line.partition("\t")
        if not tab:
            raise DataError(
                "the bundle answers pairs: put a tab between the texts", path="stdin", row=number
            )
        yield number, (first, second)


def chunks(rows: Iterable[tuple[int, T]], size: int = CHUNK) -> Iterator[list[tuple[int, T]]]:
    """Rows in lists of up to `size`, as many as are there: a slow source is answered promptly.

    A thread reads ahead by at most two chunks; its error is raised here, after what came before.
    """
    waiting: queue.Queue[tuple[int, T] | BaseException | None] = queue.Queue(maxsize=2 * size)
    stop = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for row in rows:
                waiting.put(row)
                if stop.is_set():
                    return
        except Exception as err:  # noqa: BLE001 handed to the caller, who raises it
            end = err
        waiting.put(end)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            item = waiting.get()
            chunk: list[tuple[int, T]] = []
            while isinstance(item, tuple):
                chunk.append(item)
                if len(chunk) == size:
                    break
                try:
                    item = waiting.get(timeout=0.01)
                except queue.Empty:
                    break
            if chunk:
                yield chunk
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
    finally:
        stop.set()
        with contextlib.suppress(queue.Empty):  # makes room for a reader that waits with a row
            waiting.get_nowait()


def _text(value: object, column: str, path: Path, row: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column}: {value!r} is not text", path=path, row=row)
    return value
