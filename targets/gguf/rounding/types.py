"""llama.cpp's quantizers of single rows, through ctypes: rows of float32 -> bytes, and back.

Letters: R rows and C columns of a matrix, N bytes of a row.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.check import BLOCKS
from edgelm.targets.gguf.precisions import TENSOR_TYPES, TENSORS_IN_NEED

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class _Traits(ctypes.Structure):
    """ggml's struct ggml_type_traits."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    ]


def block_size(kind: str) -> int:
    """Values in a block."""
    return BLOCKS[TENSOR_TYPES[kind]][0]


def row_bytes(kind: str, C: int) -> int:
    """Bytes of a row; C must be a multiple of the block."""
    values, size = BLOCKS[TENSOR_TYPES[kind]]
    assert C % values == 0, (kind, C)
    return C // values * size


def quantize_rows(rows: Floats, kind: str, importance: Floats | None = None) -> Bytes:
    """rows (R, C), importance (C,) above 0 -> (R, N).

    Raises ModelError for a type that cannot be made without an importance."""
    if importance is None and kind in TENSORS_IN_NEED:
        raise ModelError(f"{kind} cannot be made without an importance matrix")
    rows = np.ascontiguousarray(rows, np.float32)
    R, C = rows.shape
    found = np.empty((R, row_bytes(kind, C)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    assert weights is None or weights.shape == (C,)
    n = _library().ggml_quantize_chunk(
        TENSOR_TYPES[kind],
        rows.ctypes.data,
        found.ctypes.data,
        0,
        R,
        C,
        None if weights is None else weights.ctypes.data,
    )
    assert n == found.size, (kind, n, found.shape)
    return found


def dequantize_rows(data: Bytes, kind: str, C: int) -> Floats:
    """data (R, N) -> (R, C)."""
    data = np.ascontiguousarray(data)
    R, N = data.shape
    assert row_bytes(kind, C) == N, (kind, C, N)
    found = np.empty((R, C), np.float32)
    _to_float(kind)(data.ctypes.data, found.ctypes.data, found.size)
    return found


@cache
def _library() -> Any:
    library = bindings.load()._lib
    quantize = library.ggml_quantize_chunk
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    quantize.restype = ctypes.c_size_t
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return library


@cache
def _to_float(kind: str) -> Any:
    """Raises ModelError unless llama.cpp's description of the type is laid out as `_Traits`."""
    number = TENSOR_TYPES[kind]
    traits = _library().ggml_get_type_traits(number).contents
    if (traits.block_size, traits.block_bytes) != BLOCKS[number] or not traits.to_float:
        raise ModelError(
            f"{kind} cannot be read with this version of llama-cpp-python",
            hint="install the version in constraints.txt",
        )
    shape = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return shape(traits.to_float)
