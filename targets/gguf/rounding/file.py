"""A float GGUF file -> the same file with other types of its matrices, and how large that will be.

All but the types, the places of the tensors and general.file_type stays as it is, so that the size
is known before anything is rounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.check import Header, TensorInfo, read_header
from edgelm.targets.gguf.floats import FLOATS, to_float32
from edgelm.targets.gguf.precisions import QUANTIZED_FILE_TYPES, TENSOR_TYPES
from edgelm.targets.gguf.rounding.types import Bytes, Floats, row_bytes

_NAMES = {number: name for name, number in TENSOR_TYPES.items()}
_FILE_TYPE = "general.file_type"
_UINT32 = 4
_MIXED = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # files named after a type


def kind_of(tensor: TensorInfo) -> str:
    """The type's name."""
    return _NAMES[tensor.type]


def size_with(header: Header, kinds: Mapping[str, str]) -> int:
    """Bytes of the file once the tensors named have these types."""
    at = _data_start(header)
    for name, tensor in header.tensors.items():
        at += padded(header, tensor_bytes(tensor, kinds.get(name)))
    return at


def padded(header: Header, n_bytes: int) -> int:
    """What a tensor of so many bytes takes in the file."""
    alignment = int(header.keys.get("general.alignment", 32))
    return -(-n_bytes // alignment) * alignment


def tensor_bytes(tensor: TensorInfo, kind: str | None) -> int:
    """Of the tensor in type `kind`; None: as it is."""
    if kind is None or kind == kind_of(tensor):
        return tensor.n_bytes
    *rows, C = tensor.shape
    return int(np.prod(rows)) * row_bytes(kind, C)


def read_floats(path: Path, tensor: TensorInfo) -> Floats:
    """A tensor of a float file. Raises ModelError for one that is not of floats."""
    kind = kind_of(tensor)
    if kind not in FLOATS:
        raise ModelError(f"{path}: a tensor is of type {kind}, not of floats")
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        values: NDArray[np.generic] = np.fromfile(
            stream, FLOATS[kind], tensor.n_bytes // FLOATS[kind].itemsize
        )
    return to_float32(values).reshape(tensor.shape)


def write_with(
    source: Path,
    target: Path,
    kinds: Mapping[str, str],
    make: Callable[[str, Floats, str], Bytes],
) -> None:
    """Write `source` as `target`, each tensor named in `kinds` in its type there:
    `make(name, values, type)` gives the rows' bytes."""
    header = read_header(source)
    start = _data_start(header)
    with source.open("rb") as stream:
        head = stream.read(start)
    head = _replaced(head, _infos(header, {}), _infos(header, kinds))
    if _FILE_TYPE in header.keys:
        before, after = header.keys[_FILE_TYPE], _file_type(header, kinds)
        head = _replaced(head, _key(_FILE_TYPE, before), _key(_FILE_TYPE, after))
    with source.open("rb") as stream, target.open("wb") as out:
        out.write(head)
        for name, tensor in header.tensors.items():
            kind = kinds.get(name)
            if kind is None or kind == kind_of(tensor):
                stream.seek(tensor.offset)
                data = stream.read(tensor.n_bytes)
            else:
                data = make(name, read_floats(source, tensor), kind).tobytes()
            assert len(data) == tensor_bytes(tensor, kind), (name, kind, len(data))
            out.write(data + bytes(padded(header, len(data)) - len(data)))


def _data_start(header: Header) -> int:
    return min(tensor.offset for tensor in header.tensors.values())


def _infos(header: Header, kinds: Mapping[str, str]) -> bytes:
    """The part of the header that lists the tensors."""
    found = b""
    at = 0
    for name, tensor in header.tensors.items():
        kind = kinds.get(name)
        number = tensor.type if kind is None else TENSOR_TYPES[kind]
        raw, dims = name.encode(), tensor.shape[::-1]
        found += struct.pack("<Q", len(raw)) + raw
        found += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, at)
        at += padded(header, tensor_bytes(tensor, kind))
    return found


def _key(name: str, value: int) -> bytes:
    raw = name.encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<II", _UINT32, value)


def _replaced(head: bytes, before: bytes, after: bytes) -> bytes:
    assert head.count(before) == 1 and len(before) == len(after)
    return head.replace(before, after)


def _file_type(header: Header, kinds: Mapping[str, str]) -> int:
    """llama.cpp's name for a file most of whose bytes are of one type."""
    sizes: dict[str, int] = {}
    for name, kind in kinds.items():
        sizes[kind] = sizes.get(kind, 0) + tensor_bytes(header.tensors[name], kind)
    most = max(sizes, key=lambda kind: sizes[kind])
    return QUANTIZED_FILE_TYPES.get(_MIXED.get(most, most), int(header.keys[_FILE_TYPE]))
