"""The codes of a block: where their bits lie, and which values they stand for.

In all types here a block's values are bottom + step * level[code], bottom and step held by what
else is in the block: its scales. Both are read from llama.cpp itself, by giving all values the
lowest and the highest code; so only the places of the codes are stated, by the structs of ggml.

Letters: R blocks, B values in each, K bits of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgelm.targets.gguf.layouts import IQ4_VALUES
from edgelm.targets.gguf.rounding.types import (
    Bytes,
    Floats,
    block_size,
    dequantize_rows,
    row_bytes,
)

_Place = tuple[int, int]  # byte of the block, bit in it


def _nibbles(start: int) -> Callable[[int, int], _Place]:
    """4 bits, in blocks of 32: the first half in the low nibbles, the second in the high ones."""
    return lambda i, k: (start + i % 16, i // 16 * 4 + k)


def _fifth(fifth: int, start: int) -> Callable[[int, int], _Place]:
    """As `_nibbles`, the fifth bits in a row of their own."""
    low = _nibbles(start)
    return lambda i, k: low(i, k) if k < 4 else (fifth + i // 8, i % 8)


def _pairs(start: int) -> Callable[[int, int], _Place]:
    """2 bits, in halves of 128 values: four runs of 32 share 32 bytes."""
    return lambda i, k: (start + i // 128 * 32 + i % 32, i % 128 // 32 * 2 + k)


def _halves(start: int) -> Callable[[int, int], _Place]:
    """4 bits, in quarters of 64 values: two runs of 32 share 32 bytes."""
    return lambda i, k: (start + i // 64 * 32 + i % 32, i % 64 // 32 * 4 + k)


def _q3_k(i: int, k: int) -> _Place:
    return _pairs(32)(i, k) if k < 2 else (i % 32, i // 32)


def _q5_k(i: int, k: int) -> _Place:
    return _halves(48)(i, k) if k < 4 else (16 + i % 32, i // 32)


def _q6_k(i: int, k: int) -> _Place:
    low = (i // 128 * 64 + i % 64, i % 128 // 64 * 4 + k)
    return low if k < 4 else _pairs(128)(i, k - 4)


def _iq4_xs(i: int, k: int) -> _Place:
    return (8 + i // 32 * 16 + i % 16, i % 32 // 16 * 4 + k)


_PLACES: dict[str, tuple[int, Callable[[int, int], _Place]]] = {  # type -> K, places
    "q4_0": (4, _nibbles(2)),
    "iq4_nl": (4, _nibbles(2)),
    "q4_1": (4, _nibbles(4)),
    "q5_0": (5, _fifth(2, 6)),
    "q5_1": (5, _fifth(4, 8)),
    "q8_0": (8, lambda i, k: (2 + i, k)),
    "q2_k": (2, _pairs(16)),
    "q3_k": (3, _q3_k),
    "q4_k": (4, _halves(16)),
    "q5_k": (5, _q5_k),
    "q6_k": (6, _q6_k),
    "iq4_xs": (4, _iq4_xs),
}
KNOWN = tuple(_PLACES)
_SIGNED = 128  # q8_0's codes are signed bytes; here they count from -128


@dataclass(frozen=True)
class BlockGrid:
    """What the codes of R blocks stand for: bottom + step * levels[code]."""

    bottom: Floats  # (R, B)
    step: Floats  # (R, B), may be negative or 0
    levels: Floats  # rising from 0


@dataclass(frozen=True)
class _Layout:
    at: NDArray[np.int64]  # (B, K): byte * 8 + bit
    mask: Bytes  # (bytes of a block,): the bits that belong to codes


@cache
def _layout(kind: str) -> _Layout:
    K, place = _PLACES[kind]
    B = block_size(kind)
    pairs = [[place(i, k) for k in range(K)] for i in range(B)]
    at = np.array([[byte * 8 + bit for byte, bit in row] for row in pairs], np.int64)
    bits = np.zeros(row_bytes(kind, B) * 8, np.uint8)
    bits[at.ravel()] = 1
    return _Layout(at, np.packbits(bits, bitorder="little"))


def read_grid(blocks: Bytes, kind: str) -> BlockGrid:
    """Of blocks (R, bytes of a block) whose scales are set."""
    mask, B, n = _layout(kind).mask, block_size(kind), 1 << _PLACES[kind][0]
    if kind == "q8_0":  # all bits set is -1 there
        ones = put_codes(blocks, kind, np.full((len(blocks), B), _SIGNED + 1))
        step = dequantize_rows(ones, kind, B)
        return BlockGrid(-_SIGNED * step, step, np.arange(n, dtype=np.float32))
    bottom = dequantize_rows(blocks & ~mask, kind, B)
    top = dequantize_rows(blocks | mask, kind, B)
    levels = np.arange(n, dtype=np.float32)
    if kind in ("iq4_nl", "iq4_xs"):
        levels = np.array(IQ4_VALUES, np.float32) - IQ4_VALUES[0]
    return BlockGrid(bottom, (top - bottom) / levels[-1], levels)


def put_codes(blocks: Bytes, kind: str, codes: NDArray[np.int64]) -> Bytes:
    """The blocks (R, bytes of a block) with other codes (R, B), each 0 <= code < 2^K."""
    layout = _layout(kind)
    if kind == "q8_0":
        codes = codes - _SIGNED
    found = blocks & ~layout.mask
    for k, at in enumerate(layout.at.T):
        bits = (codes >> k & 1).astype(np.uint8) << (at % 8).astype(np.uint8)
        order = np.argsort(at // 8, kind="stable")
        byte, first = np.unique(at[order] // 8, return_index=True)
        found[:, byte] |= np.bitwise_or.reduceat(bits[:, order], first, axis=1)
    return found
