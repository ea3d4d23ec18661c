"""Messages between the web process and a worker: a JSON header, and bytes behind it.

A frame is the two lengths (unsigned, 4 bytes each, little-endian), the header and the bytes. JSON
and not pickle: what a broken worker says cannot run code in the web process.
"""

from __future__ import annotations

import json
import struct
from typing import IO, TYPE_CHECKING, Any

from edgelm.runtime.errors import BundleError, EdgelmError, UsageError

if TYPE_CHECKING:
    import asyncio

Header = dict[str, Any]
_LENGTHS = struct.Struct("<II")
MAX_BYTES = 2**28  # of a part: what is longer is no frame of ours


def pack(header: Header, blob: bytes = b"") -> bytes:
    """A whole frame."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(text), len(blob)) + text + blob


def read_frame(stream: IO[bytes]) -> tuple[Header, bytes] | None:
    """The next frame, or None at the end of the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    n_header, n_blob = _checked(lengths)
    header, blob = stream.read(n_header), stream.read(n_blob)
    if len(header) < n_header or len(blob) < n_blob:
        return None
    return json.loads(header), blob


async def read_frame_async(stream: asyncio.StreamReader) -> tuple[Header, bytes]:
    """As `read_frame`. Raises asyncio.IncompleteReadError at the end of the stream, BundleError on
    what is no frame."""
    n_header, n_blob = _checked(await stream.readexactly(_LENGTHS.size))
    header = await stream.readexactly(n_header)
    blob = await stream.readexactly(n_blob) if n_blob else b""
    try:
        return json.loads(header), blob
    except ValueError as err:
        raise BundleError(f"a worker sent what is no message: {err}") from err


def _checked(lengths: bytes) -> tuple[int, int]:
    n_header, n_blob = _LENGTHS.unpack(lengths)
    if max(n_header, n_blob) > MAX_BYTES:
        raise BundleError("a worker sent what is no message")
    return n_header, n_blob


class Channel:
    """The worker's end of the two pipes."""

    def __init__(self, asked: IO[bytes], said: IO[bytes]) -> None:
        self.asked = asked
        self._said = said

    def say(self, header: Header, blob: bytes = b"") -> None:
        """One message to the web process."""
        self._said.write(pack(header, blob))
        self._said.flush()


def error_header(err: EdgelmError) -> Header:
    """An error as it crosses: kind (usage or engine), message, hint."""
    kind = "usage" if isinstance(err, UsageError) else "engine"
    return {"kind": kind, "message": err.message, "hint": err.hint}
