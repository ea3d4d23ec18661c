"""Lines of a text file, decoded strictly and in constant memory.

UTF-8 (with or without a byte order mark) and UTF-16 with a byte order mark are read; anything else
is refused with the row it stands in, because a wrong guess would train on garbled texts.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgelm.runtime.errors import DataError

MAX_LINE = 16 * 2**20  # bytes of one line; more is no text that a model of this size could read

_ENCODINGS = "save the file as UTF-8; UTF-16 is read too when it begins with a byte order mark"


def read_lines(path: Path, *, limit: int = MAX_LINE) -> Iterator[str]:
    """The lines with their ends (LF), the byte order mark taken off.

    Raises DataError: missing, unreadable or empty file, wrong encoding, NUL, a line over `limit`.
    """
    with reading(path), _open(path) as stream:
        if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            lines = _utf16(stream, path, limit)
        else:
            lines = _utf8(stream, path, limit)
        row = 0
        for row, line in enumerate(lines, 1):
            if "\0" in line:
                raise DataError("a NUL character stands here", path=path, row=row,
                                hint=f"text files hold none; {_ENCODINGS}")  # fmt: skip
            yield line
        if row == 0:
            raise DataError("the file is empty", path=path)


def text_lines(path: Path) -> Iterator[str]:
    """The lines without their ends, which are LF or CRLF. Raises DataError as `read_lines`."""
    for line in read_lines(path):
        yield line.removesuffix("\n").removesuffix("\r")


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what the disk says (missing, no permission, damaged) into DataError."""
    try:
        yield
    except FileNotFoundError as err:
        raise DataError("there is no such file or directory", path=path) from err
    except OSError as err:
        raise DataError(f"cannot be read: {err.strerror or err}", path=path) from err
    except (EOFError, zlib.error) as err:
        raise DataError(f"the gzip data is damaged: {err}", path=path) from err


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.GzipFile(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _utf8(stream: io.BufferedReader | gzip.GzipFile, path: Path, limit: int) -> Iterator[str]:
    row = 0
    while raw := stream.readline(limit + 1):
        row += 1
        if row == 1 and raw.startswith(codecs.BOM_UTF8):
            raw = raw[len(codecs.BOM_UTF8) :]
            if not raw:
                return
        _check_length(len(raw), path, row, limit)
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as err:
            byte = f"byte 0x{raw[err.start]:02x} at position {err.start + 1} of the line"
            raise DataError(f"{byte} is not UTF-8", path=path, row=row, hint=_ENCODINGS) from err


def _utf16(stream: io.BufferedReader | gzip.GzipFile, path: Path, limit: int) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding="utf-16", newline="\n")
    row = 0
    try:
        while line := text.readline(limit + 1):
            row += 1
            _check_length(len(line), path, row, limit)
            yield line
    except UnicodeError as err:  # decoded in blocks: the fault stands here or shortly after
        raise DataError(
            f"not valid UTF-16 from here on: {err}", path=path, row=row + 1, hint=_ENCODINGS
        ) from err


def _check_length(length: int, path: Path, row: int, limit: int) -> None:
    if length > limit:
        raise DataError(f"the line is longer than {limit} bytes", path=path, row=row)
