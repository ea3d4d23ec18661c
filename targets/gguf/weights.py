"""The checkpoint's tensors, a block of rows at a time: `model.safetensors`, whole or in shards.

Files are read, not mapped: pages of a mapped file count as the process's memory, which would then
grow with the model. The layout is plain: a length, a JSON header, then the bytes of all tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.floats import to_float32

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 * 2**20
_BLOCK_BYTES = 16 * 2**20
# Checkpoints of the first BERT releases name a norm's two vectors so.
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
# as stored -> as numpy reads it, which has no bfloat16
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SIZES = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies."""

    stream: BinaryIO
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file


class Weights:
    """A read-only mapping from parameter name to array."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._entries: dict[str, _Entry] = {}
        try:
            for path in _shards(folder):
                stream = self._stack.enter_context(path.open("rb", buffering=0))
                for name, entry in _read_header(stream, path.stat().st_size).items():
                    self._entries[_modern(name)] = entry
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            self._stack.close()
            raise ModelError(f"{folder}: its weights cannot be read: {err}") from err

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the values."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """How it is stored: F64, F32, F16 or BF16. Raises ModelError for what is no float."""
        entry = self._entry(name)
        if entry.dtype not in _DTYPES:
            raise ModelError(
                f"{name} is stored as {entry.dtype}; the weights must be floats, merged"
            )
        return entry.dtype

    def own_precision(self, names: Iterable[str]) -> str:
        """The float type of a GGUF file that holds all of them as they are."""
        stored = {self.dtype(name) for name in names}
        if len(stored) != 1:
            return "f32"
        return {"F16": "f16", "BF16": "bf16"}.get(stored.pop(), "f32")

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
        shape = self.shape(name)
        parts = [to_float32(block) for block in self.blocks(name)]
        return np.concatenate(parts).reshape(shape) if len(parts) > 1 else parts[0].reshape(shape)

    def blocks(self, name: str, skip_rows: int = 0, multiple: int = 1) -> Iterator[NDArray[Any]]:
        """The rows in blocks of a few megabytes, each of a `multiple` of rows, as they are stored;
        bfloat16 comes as uint16. The array is free to be changed."""
        entry = self._entry(name)
        dtype = np.dtype(_DTYPES[self.dtype(name)])
        n_rows, *rest = entry.shape or (1,)
        row_bytes = prod(rest) * dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, row_bytes * multiple)) * multiple
        for start in range(skip_rows, n_rows, step):
            stop = min(start + step, n_rows)
            block = np.empty((stop - start, *rest), dtype)
            entry.stream.seek(entry.offset + start * row_bytes)
            _fill(entry.stream, block, name)
            yield block

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            near = sorted(n for n in self._entries if n.split(".")[-2:] == name.split(".")[-2:])[:3]
            raise ModelError(
                f"the checkpoint has no {name}" + (f"; it has {', '.join(near)}" if near else "")
            )
        return self._entries[name]


def _fill(stream: BinaryIO, block: NDArray[Any], name: str) -> None:
    view = block.data.cast("B") if block.size else memoryview(b"")
    while view:
        n = stream.readinto(view)  # type: ignore[attr-defined]
        if not n:
            raise ModelError(f"{name}: the weights file ends inside it")
        view = view[n:]


def _read_header(stream: BinaryIO, size: int) -> dict[str, _Entry]:
    raw = stream.read(8)
    (n,) = struct.unpack("<Q", raw) if len(raw) == 8 else (0,)
    if not 2 <= n <= min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError("not a safetensors file")
    header = json.loads(stream.read(n))
    header.pop("__metadata__", None)
    entries: dict[str, _Entry] = {}
    for name, said in header.items():
        begin, end = said["data_offsets"]
        shape = tuple(said["shape"])
        if any(not isinstance(v, int) or v < 0 for v in (begin, end, *shape)):
            raise ValueError(f"{name}: a negative size")
        dtype = str(said["dtype"])
        item = np.dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else _SIZES.get(dtype)
        fits = item is None or end - begin == prod(shape) * item
        if not fits or not begin <= end <= size - 8 - n:
            raise ValueError(f"{name} lies outside the file, or is not of its stated size")
        entries[name] = _Entry(stream, dtype, shape, 8 + n + begin)
    return entries


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name[: -len(old)] + new
    return name


def _shards(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not (folder / _INDEX).is_file():
        raise ModelError(f"{folder}: it holds no {_WHOLE}")
    try:
        names = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as err:
        raise ModelError(f"{folder / _INDEX}: not a weight index") from err
    return [folder / str(name) for name in sorted(names)]
