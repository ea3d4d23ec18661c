"""A model over several files, as llama.cpp lays it out: STEM-00001-of-0000N.gguf and so on.

Each file has its number, the number of files and that of all tensors; the first has all other keys
too. No tensor is cut. llama.cpp opens the first, and finds the others by their names.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgelm.runtime.errors import BundleError, ModelError
from edgelm.targets.gguf.check import (
    KEYS_START,
    MAX_TENSORS,
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_TENSORS,
    SPLIT_TYPES,
    Header,
    TensorInfo,
    aligned,
    read_header,
)

MAX_FILES = 1024
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_ALIGNMENT, _UINT32 = "general.alignment", 4
_BLOCK_BYTES = 2**24


def shard_names(path: str) -> list[str]:
    """The names of all files of the set that the file `path` begins; `path` alone where its name
    is not of a set. Raises ValueError for another file of a set than its first, and for a name
    of more than MAX_FILES."""
    found = _NAME.fullmatch(PurePosixPath(path).name)
    if found is None:
        return [path]
    stem, no, count = found[1], int(found[2]), int(found[3])
    if not 1 <= count <= MAX_FILES:
        raise ValueError(f"{path} is one of {count} files, a model has from 1 to {MAX_FILES}")
    if no != 1:
        raise ValueError(f"{path} is file {no} of {count}, a model is opened by its first file")
    folder = path.removesuffix(PurePosixPath(path).name)
    return [folder + _name(stem, i, count) for i in range(count)]


def stem_of(name: str) -> str:
    """The file's name without its ending and its number."""
    found = _NAME.fullmatch(name)
    return name.removesuffix(".gguf") if found is None else found[1]


def read_model(path: Path) -> Header:
    """The header of `path` and, where that begins a set, the tensors of all its files: each is
    looked through, and they must fit each other. Raises BundleError."""
    first = read_header(path)
    if SPLIT_COUNT not in first.keys:
        return first  # a lone `split.no` is refused with the other keys
    try:
        return _joined(path, first)
    except ValueError as err:
        raise BundleError(f"{path}: not a usable GGUF file: {err}") from err


def _joined(path: Path, first: Header) -> Header:
    count = first.keys[SPLIT_COUNT]
    names = shard_names(path.name)
    if len(names) != count:
        raise ValueError(f"it is one of {count} files, which its name does not say")
    tensors: dict[str, TensorInfo] = {}
    for no, name in enumerate(names):
        header = first if no == 0 else read_header(path.with_name(name))
        _check_fits(header, first, no, name)
        if tensors.keys() & header.tensors.keys():
            raise ValueError(f"{name}: a tensor of it is in another file too")
        tensors |= header.tensors
        if len(tensors) > MAX_TENSORS:
            raise ValueError(f"its files hold more than {MAX_TENSORS} tensors")
    if len(tensors) != first.keys[SPLIT_TENSORS]:
        raise ValueError(
            f"its {count} files hold {len(tensors)} of {first.keys[SPLIT_TENSORS]} tensors"
        )
    keys = {k: v for k, v in first.keys.items() if k not in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)}
    return replace(first, keys=keys, tensors=tensors)


def _check_fits(header: Header, first: Header, no: int, name: str) -> None:
    expected = first.keys | {SPLIT_NO: no}
    wrong = [k for k, v in header.keys.items() if k not in expected or expected[k] != v]
    missing = {SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS} - header.keys.keys()
    if wrong or missing:
        raise ValueError(f"{name}: {min([*wrong, *missing])} is not that of file {no + 1}")


def split_file(path: Path, max_bytes: int) -> list[str]:
    """Replace the file by a set of files of at most `max_bytes` beside it, and give their names;
    a file that is small enough stays. A tensor that is larger is in a file by itself.

    Raises ModelError for more than MAX_FILES files, BundleError for a file that is not GGUF."""
    if path.stat().st_size <= max_bytes:
        return [path.name]
    header = read_header(path)
    parts = _plan(header, max_bytes)
    count = len(parts)
    if count > MAX_FILES:
        raise ModelError(
            f"files of {max_bytes / 1e6:g} MB would be {count}, at most {MAX_FILES} are made",
            hint="allow larger ones with gguf.split_size_mb",
        )
    names = [_name(path.stem, no, count) for no in range(count)]
    with path.open("rb") as source:
        for no, (name, tensors) in enumerate(zip(names, parts, strict=True)):
            with path.with_name(name).open("wb") as stream:
                _write(stream, source, header, tensors, no, count)
    path.unlink()
    return names


def _name(stem: str, no: int, count: int) -> str:
    return f"{stem}-{no + 1:05d}-of-{count:05d}.gguf"


def _plan(header: Header, max_bytes: int) -> list[dict[str, TensorInfo]]:
    """The tensors of each file, in their order; the first may have none."""
    parts: list[dict[str, TensorInfo]] = [{}]
    infos, data = 0, 0  # bytes of the file so far
    for name, tensor in header.tensors.items():
        info, n_bytes = len(_info(name, tensor, 0)), aligned(tensor.n_bytes, header.alignment)
        keys = header.keys_end if len(parts) == 1 else KEYS_START
        head = keys + len(_own_keys(header, len(parts) - 1, 0)) + infos + info
        is_full = aligned(head, header.alignment) + data + n_bytes > max_bytes
        if is_full and (parts[-1] or len(parts) == 1):
            parts.append({})
            infos = data = 0
        parts[-1][name] = tensor
        infos, data = infos + info, data + n_bytes
    return parts


def _write(
    stream: BinaryIO,
    source: BinaryIO,
    header: Header,
    tensors: dict[str, TensorInfo],
    no: int,
    count: int,
) -> None:
    """One file of the set."""
    own = _own_keys(header, no, count)
    n_keys = len(SPLIT_TYPES) + (len(header.keys) if no == 0 else _ALIGNMENT in header.keys)
    stream.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), n_keys))
    if no == 0:
        _copy(source, stream, KEYS_START, header.keys_end - KEYS_START)
    stream.write(own)
    offset = 0
    for name, tensor in tensors.items():
        stream.write(_info(name, tensor, offset))
        offset += aligned(tensor.n_bytes, header.alignment)
    _pad(stream, header.alignment)
    for tensor in tensors.values():
        _copy(source, stream, tensor.offset, tensor.n_bytes)
        _pad(stream, header.alignment)


def _own_keys(header: Header, no: int, count: int) -> bytes:
    """The keys that make file `no` one of a set; how it is laid out must be said in each."""
    own = [
        _key(SPLIT_NO, SPLIT_TYPES[SPLIT_NO], struct.pack("<H", no)),
        _key(SPLIT_COUNT, SPLIT_TYPES[SPLIT_COUNT], struct.pack("<H", count)),
        _key(SPLIT_TENSORS, SPLIT_TYPES[SPLIT_TENSORS], struct.pack("<i", len(header.tensors))),
    ]
    if no > 0 and _ALIGNMENT in header.keys:
        own.append(_key(_ALIGNMENT, _UINT32, struct.pack("<I", header.alignment)))
    return b"".join(own)


def _key(name: str, kind: int, value: bytes) -> bytes:
    raw = name.encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<I", kind) + value


def _info(name: str, tensor: TensorInfo, offset: int) -> bytes:
    raw, dims = name.encode(), tuple(reversed(tensor.shape))
    ends = struct.pack("<IQ", tensor.type, offset)
    return (
        struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + ends
    )


def _copy(source: BinaryIO, stream: BinaryIO, offset: int, n_bytes: int) -> None:
    source.seek(offset)
    while n_bytes:
        block = source.read(min(n_bytes, _BLOCK_BYTES))
        if not block:
            raise ModelError(f"{source.name} became shorter while it was read")
        stream.write(block)
        n_bytes -= len(block)


def _pad(stream: BinaryIO, alignment: int) -> None:
    at = stream.tell()
    stream.write(b"\0" * (aligned(at, alignment) - at))
