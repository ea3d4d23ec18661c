"""A look at a GGUF file's header before llama.cpp sees it.

llama.cpp ends the process on some broken headers (assertions on counts, duplicate tokens, zero
heads), and reads past the end of some short files. Everything it relies on is checked here first,
in plain Python: a bad file raises BundleError. What its keys may say is in facts.py.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError

MAX_KEYS = 1024
MAX_TENSORS = 65_536
MAX_STRINGS = 4_000_000  # in one array
MAX_NAME = 63  # bytes of a tensor's name, llama.cpp's limit
MAX_DIMS = 4
MAX_KEY_BYTES = 65_535
MAX_TEXT_BYTES = 64 * 2**20  # of one value
MAX_TEMPLATE_BYTES = 256 * 2**10

# ggml type -> (values in a block, bytes of a block)
BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # f32
    1: (1, 2),  # f16
    2: (32, 18),  # q4_0
    3: (32, 20),  # q4_1
    6: (32, 22),  # q5_0
    7: (32, 24),  # q5_1
    8: (32, 34),  # q8_0
    10: (256, 84),  # q2_k
    11: (256, 110),  # q3_k
    12: (256, 144),  # q4_k
    13: (256, 176),  # q5_k
    14: (256, 210),  # q6_k
    16: (256, 66),  # iq2_xxs
    17: (256, 74),  # iq2_xs
    18: (256, 98),  # iq3_xxs
    19: (256, 50),  # iq1_s
    20: (32, 18),  # iq4_nl
    21: (256, 110),  # iq3_s
    22: (256, 82),  # iq2_s
    23: (256, 136),  # iq4_xs
    29: (256, 56),  # iq1_m
    30: (1, 2),  # bf16
    34: (256, 54),  # tq1_0
    35: (256, 66),  # tq2_0
    39: (32, 17),  # mxfp4
    40: (64, 36),  # nvfp4
    41: (128, 18),  # q1_0
    42: (64, 18),  # q2_0
}

# value type of a key -> struct format; 8 is a string, 9 an array
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
KEYS_START = 24
# Of files of a set, with the types that llama.cpp ends the process without: uint16 and int32
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_TYPES = {SPLIT_NO: 2, SPLIT_COUNT: 2, SPLIT_TENSORS: 5}
_TOKENS = "tokenizer.ggml.tokens"
_ALIGNMENT = "general.alignment"
_TEMPLATE = "tokenizer.chat_template"
_OF_EACH_TOKEN = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_UINT32 = 4


@dataclass(frozen=True)
class Array:
    """A key's value that is a list, of which only the length is kept."""

    length: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its ggml type, its shape as numpy would say it (rows first), and its bytes."""

    type: int
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    n_bytes: int
    path: Path  # the file


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    keys: dict[str, Any]
    tensors: dict[str, TensorInfo]
    keys_end: int  # from the start of the file, where they begin at KEYS_START
    alignment: int  # of tensors, in bytes


def read_header(path: Path) -> Header:
    """Read and check the header of `path`. Raises BundleError."""
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            cursor = _Cursor(data, len(data))
            header = _read(cursor, path)
    except (OSError, ValueError) as err:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path}: cannot be read: {err}") from err
    except _Bad as err:
        raise BundleError(f"{path}: not a usable GGUF file: {err}") from err
    return header


class _Bad(Exception):
    """The header breaks a rule."""


class _Cursor:
    """A place in the file that never leaves it."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0

    def scalar(self, format_: str) -> Any:
        n = struct.calcsize("<" + format_)
        self._need(n)
        (value,) = struct.unpack_from("<" + format_, self.data, self.at)
        self.at += n
        return value

    def bytes(self, n: int) -> bytes:
        self._need(n)
        value = self.data[self.at : self.at + n]
        self.at += n
        return value

    def string(self, max_bytes: int = MAX_TEXT_BYTES) -> str:
        n = self.scalar("Q")
        if n > max_bytes:
            raise _Bad(f"a text of {n} bytes, at most {max_bytes} are read")
        raw = self.bytes(n)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as err:
            raise _Bad("a name is not UTF-8") from err

    def skip(self, n: int) -> None:
        self._need(n)
        self.at += n

    def strings(self, n: int, *, unique: bool) -> None:
        """Walk over `n` strings."""
        if n > MAX_STRINGS or n * 8 > self.size - self.at:
            raise _Bad(f"an array of {n} strings does not fit the file")
        data, size, at = self.data, self.size, self.at
        unpack = struct.Struct("<Q").unpack_from
        ends: list[int] = []
        try:
            for _ in range(n):
                at += 8 + unpack(data, at)[0]
                ends.append(at)
        except (struct.error, OverflowError):
            raise _Bad("it ends inside a string, or a string is longer than the file") from None
        if at > size:
            raise _Bad("a string is longer than the file")
        if unique:
            _check_tokens(data, self.at, ends)
        self.at = at

    def _need(self, n: int) -> None:
        if n > self.size - self.at:
            raise _Bad("it ends inside its header")


def _check_tokens(data: mmap.mmap, at: int, ends: list[int]) -> None:
    starts = [at + 8, *(end + 8 for end in ends[:-1])]
    seen = set(map(data.__getitem__, map(slice, starts, ends)))
    if b"\0" in b"".join(seen):  # llama.cpp reads C strings
        seen = {token.partition(b"\0")[0] for token in seen}
    if len(seen) != len(ends) or b"" in seen:
        raise _Bad("a token is empty or stands twice in the vocabulary")
    # llama.cpp takes a token of six characters that begins so for a byte, and its digits for one
    bytes_ = (t for t in seen if len(t) == 6 and t[:3] == b"<0x" and t[-1:] == b">")
    odd = [t for t in bytes_ if not _BYTE_TOKEN.fullmatch(t)]
    if odd:
        raise _Bad(f"the token {odd[0][:40]!r} looks like a byte and is none")


def aligned(n: int, alignment: int) -> int:
    """The next multiple of it."""
    return -(-n // alignment) * alignment


def _read(cursor: _Cursor, path: Path) -> Header:
    if cursor.bytes(4) != b"GGUF":
        raise _Bad("it does not begin with GGUF")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise _Bad(f"version {version}, known are 2 and 3")
    n_tensors, n_keys = cursor.scalar("Q"), cursor.scalar("Q")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise _Bad(
            f"{n_tensors} tensors and {n_keys} keys are more than {MAX_TENSORS} and {MAX_KEYS}"
        )
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        name = cursor.string(MAX_KEY_BYTES)
        if not name or name in keys:
            raise _Bad(f"the key {name[:80]!r} is empty or stands twice")
        keys[name] = _value(cursor, name)
    n_tokens = keys.get(_TOKENS)
    for name in _OF_EACH_TOKEN:
        if n_tokens is not None and keys.get(name, n_tokens) != n_tokens:
            raise _Bad(f"{name} does not list every token")
    keys_end, alignment = cursor.at, _alignment(keys)
    tensors = _tensors(cursor, n_tensors, alignment, path)
    return Header(keys, tensors, keys_end, alignment)


def _value(cursor: _Cursor, name: str) -> Any:
    kind = cursor.scalar("I")
    if kind != SPLIT_TYPES.get(name, kind):
        raise _Bad(f"{name} is of the type {kind}")
    if name == _ALIGNMENT and kind != _UINT32:
        raise _Bad(f"{name} is of the type {kind}")
    if kind == _STRING:
        return cursor.string(MAX_TEMPLATE_BYTES if name == _TEMPLATE else MAX_TEXT_BYTES)
    if kind == _ARRAY:
        kind, n = cursor.scalar("I"), cursor.scalar("Q")
        if kind == _STRING:
            cursor.strings(n, unique=name == _TOKENS)
        elif kind in _SCALARS:
            cursor.skip(n * struct.calcsize("<" + _SCALARS[kind]))
        else:
            raise _Bad(f"{name}: an array of the unknown type {kind}")
        return Array(n)
    if kind not in _SCALARS:
        raise _Bad(f"{name}: the unknown type {kind}")
    return cursor.scalar(_SCALARS[kind])


def _alignment(keys: dict[str, Any]) -> int:
    value = keys.get(_ALIGNMENT, 32)
    if not isinstance(value, int) or not 8 <= value <= 65_536 or value & (value - 1):
        raise _Bad(f"general.alignment is {value!r}, not a power of two from 8 to 65536")
    return value


def _tensors(cursor: _Cursor, n: int, alignment: int, path: Path) -> dict[str, TensorInfo]:
    found: list[tuple[str, int, tuple[int, ...], int, int]] = []
    for _ in range(n):
        name = cursor.string(MAX_NAME)
        n_dims = cursor.scalar("I")
        if not name or not 1 <= n_dims <= MAX_DIMS:
            raise _Bad(f"tensor {name!r}: a bad name, or {n_dims} dimensions")
        dims = [cursor.scalar("Q") for _ in range(n_dims)]
        kind, offset = cursor.scalar("I"), cursor.scalar("Q")
        found.append(
            (name, kind, tuple(reversed(dims)), offset, _n_bytes(name, kind, dims, cursor))
        )
    start = aligned(cursor.at, alignment)
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for name, kind, shape, offset, n_bytes in found:
        # llama.cpp wants them back to back, in order
        if name in tensors or offset != expected or start + offset + n_bytes > cursor.size:
            raise _Bad(
                f"tensor {name}: stands twice, is out of place, or reaches past the file's end"
            )
        tensors[name] = TensorInfo(kind, shape, start + offset, n_bytes, path)
        expected += aligned(n_bytes, alignment)
    return tensors


def _n_bytes(name: str, kind: int, dims: list[int], cursor: _Cursor) -> int:
    if kind not in BLOCKS:
        raise _Bad(f"tensor {name}: the unknown type {kind}")
    n_values, n_block_bytes = BLOCKS[kind]
    n = 1
    for dim in dims:
        n *= dim
    if n == 0 or dims[0] % n_values or n // n_values * n_block_bytes > cursor.size:
        raise _Bad(f"tensor {name}: the shape {dims} does not fit type {kind} and the file")
    return n // n_values * n_block_bytes
