"""Protocol buffers as they lie in a file, one field after another, without a schema's code.

Nothing is copied or allocated by what a file says; bounds are checked where a length is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Malformed(ValueError):
    """The bytes are no message."""


class Field(NamedTuple):
    """One field: its number, how it lies there, and its value or the place of its bytes."""

    number: int
    wire: int
    value: int  # of a varint; else 0
    start: int
    end: int


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end]. Raises Malformed."""
    at = start
    while at < end:
        key, at = varint(data, at, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise Malformed(f"a field of number {number}")
        if wire == VARINT:
            value, after = varint(data, at, end)
            yield Field(number, wire, value, at, after)
            at = after
            continue
        if wire == BYTES:
            size, at = varint(data, at, end)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise Malformed(f"a field of the wire type {wire}")
        if size > end - at:
            raise Malformed("a field is longer than what holds it")
        yield Field(number, wire, 0, at, at + size)
        at += size


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """An unsigned number and the place behind it. Raises Malformed."""
    if at < end and data[at] < 0x80:  # most are of one byte
        return data[at], at + 1
    value = 0
    for shift, place in enumerate(range(at, min(end, at + _MAX_VARINT_BYTES))):
        value |= (data[place] & 0x7F) << 7 * shift
        if data[place] < 0x80:
            if value >> 64:
                raise Malformed("a number of more than 64 bits")
            return value, place + 1
    raise Malformed("a number without an end")


def signed(value: int) -> int:
    """A varint as an int64."""
    return value - (1 << 64) if value >> 63 else value
