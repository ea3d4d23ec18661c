"""Token vectors looked up outside llama.cpp, for second texts with a token type of their own.

llama.cpp adds type row 0 to whatever it is given, so a token of type t is fed as its own vector
plus (row t - row 0). The table stays in the file: it is mapped, and only the asked rows are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import BundleError, InputError
from edgelm.targets.gguf.check import Header, TensorInfo

F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # ggml's numbers
_BLOCK = 32  # values of a q8_0 block: one float16 scale, then as many int8


class TokenRows:
    """The token table and the type table of a GGUF file."""

    def __init__(self, path: Path, header: Header, n_embd: int) -> None:
        try:
            table, types = header.tensors["token_embd.weight"], header.tensors["token_types.weight"]
        except KeyError as err:
            raise BundleError(f"{path}: it has no {err} for texts with types") from err
        if table.type not in (F32, F16, BF16, Q8_0) or types.type != F32:
            raise BundleError(f"{path}: its token table is of a type that cannot be looked up")
        if types.shape[1:] != (n_embd,) or table.shape[1:] != (n_embd,):
            raise BundleError(f"{path}: its type table is not {n_embd} wide")
        self._table = table
        self._bytes = _map(table)
        values = _map(types).view("<f4")
        self._shifts = np.asarray(values - values[0], dtype=np.float32)  # (types, H)

    def gather(self, ids: NDArray[np.int32], type_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Vectors (n, H) of the tokens `ids` (n,) with types `type_ids` (n,)."""
        if int(type_ids.min()) < 0 or int(type_ids.max()) >= len(self._shifts):
            raise InputError(f"a token type outside 0 to {len(self._shifts) - 1}")
        return _decode(self._bytes[ids], self._table.type) + self._shifts[type_ids]


def _map(info: TensorInfo) -> NDArray[np.uint8]:
    """The tensor's bytes, (rows, bytes a row)."""
    shape = (info.shape[0], info.n_bytes // info.shape[0])
    return np.memmap(info.path, dtype=np.uint8, mode="r", offset=info.offset, shape=shape)


def _decode(raw: NDArray[np.uint8], kind: int) -> NDArray[np.float32]:
    """Rows of bytes -> float32 (n, H), the values llama.cpp would compute."""
    raw = np.ascontiguousarray(raw)
    if kind == F32:
        return raw.view("<f4").astype(np.float32)
    if kind == F16:
        return raw.view("<f2").astype(np.float32)
    if kind == BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(len(raw), -1, 2 + _BLOCK)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    return (blocks[..., 2:].view(np.int8).astype(np.float32) * scales).reshape(len(raw), -1)
