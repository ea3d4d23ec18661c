"""Texts of `edgelm predict`: answered as they come, in constant memory."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelm.runtime.errors import DataError
from edgelm.runtime.streams import Row, chunks, file_rows, line_rows


class Counting:
    """An endless source that knows how much was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Row]:
        while True:
            self.taken += 1
            yield self.taken, f"text {self.taken}"


def test_no_more_is_read_than_two_chunks_ahead() -> None:
    source = Counting()
    found = chunks(source, size=8)
    for n in range(20):
        chunk = next(found)
        assert 1 <= len(chunk) <= 8
        time.sleep(0.002)  # lets the reader run on, if it would
        assert source.taken <= chunk[-1][0] + 2 * 8 + 1, n
    found.close()


def test_chunks_hold_all_rows_in_order() -> None:
    rows = [(i, str(i)) for i in range(100)]
    assert [row for chunk in chunks(rows, size=7) for row in chunk] == rows
    assert list(chunks([])) == []


def test_a_slow_source_is_answered_before_it_ends() -> None:
    more = threading.Event()

    def slow() -> Iterator[Row]:
        yield 1, "first"
        assert more.wait(10)
        yield 2, "second"

    found = chunks(slow())
    assert next(found) == [(1, "first")]
    more.set()
    assert next(found) == [(2, "second")]


def test_an_error_comes_after_what_was_read_before_it() -> None:
    def broken() -> Iterator[Row]:
        yield 1, "fine"
        raise DataError("bad", row=2)

    found = chunks(broken())
    assert next(found) == [(1, "fine")]
    with pytest.raises(DataError):
        next(found)


def test_the_reading_thread_ends_when_nobody_listens() -> None:
    before = set(threading.enumerate())
    found = chunks(Counting(), size=4)
    next(found)
    (reader,) = set(threading.enumerate()) - before
    time.sleep(0.05)  # it has read ahead by now, and waits
    found.close()
    reader.join(timeout=5)
    assert not reader.is_alive()


def test_lines() -> None:
    stream = io.BytesIO("i lost\r\n\n我 的\t卡\nlast".encode())
    assert list(line_rows(stream, pair=False)) == [
        (1, "i lost"),
        (2, ""),
        (3, "我 的\t卡"),
        (4, "last"),
    ]
    assert list(line_rows(io.BytesIO(b"a\tb\tc\n"), pair=True)) == [(1, ("a", "b\tc"))]


@pytest.mark.parametrize(
    ("raw", "pair", "says"),
    [
        (b"fine\n\xff\xfe\n", False, "stdin, row 2: not valid UTF-8"),
        (b"a\tb\nno tab\n", True, "stdin, row 2: the bundle answers pairs: put a tab"),
    ],
)
def test_bad_lines(raw: bytes, pair: bool, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(line_rows(io.BytesIO(raw), pair=pair))


def test_files_give_pairs_and_their_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text_a,text_b\none,two\nthree,four\n")
    rows = list(file_rows(path, pair=True, text=None, second=None))
    assert rows == [(2, ("one", "two")), (3, ("three", "four"))]
    path.write_text("text,other\none,two\n")
    rows = list(file_rows(path, pair=True, text="text", second="other"))
    assert rows == [(2, ("one", "two"))]
    with pytest.raises(DataError, match="no column of second texts"):
        list(file_rows(path, pair=True, text="text", second=None))


def test_a_byte_order_mark_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(line_rows(io.BytesIO(b"\xef\xbb\xbfhi\n\xef\xbb\xbfb"), pair=False)) == [
        (1, "hi"),
        (2, "\ufeffb"),
    ]
    monkeypatch.setattr("edgelm.runtime.streams.MAX_LINE", 4)
    with pytest.raises(DataError, match="stdin, row 2: the line is longer than 4 bytes"):
        list(line_rows(io.BytesIO(b"abc\nabcde"), pair=False))
