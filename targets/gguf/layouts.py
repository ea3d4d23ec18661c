"""How llama.cpp lays quantized blocks out in bytes: what they can hold, and their levels put in.

Each type's scales and offsets are read from a file that llama.cpp's quantizer wrote; levels of our
own then take the place of its. The types whose blocks are entries of a code book (iq3, iq2, iq1)
are not here: their values are not chosen one by one.

Letters: R rows, B blocks in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgelm.targets.grid import Grid

Bytes = NDArray[np.uint8]  # (R, B, bytes of a block)
Levels = NDArray[np.uint8]  # (R, B, values of a block), from 0 on
Scales = NDArray[np.float32]  # (R, B, sub-blocks)

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Layout:
    """Of one type."""

    n_bytes: int  # of a block
    n_values: int
    n_sub: int  # values that share a scale
    low: int
    high: int  # levels are low … high
    zero: int  # what is stored for level 0
    scales: Callable[[Bytes], tuple[Scales, Scales | None]]  # (scale, offset)
    put: Callable[[Bytes, Levels], None]  # writes levels into blocks
    table: tuple[int, ...] | None = None

    def grid(self, data: NDArray[np.uint8]) -> Grid:
        """What the tensor with the bytes `data` (R, bytes of a row) can hold."""
        blocks = self._blocks(data)
        scale, offset = self.scales(blocks)
        R = len(blocks)
        return Grid(
            torch.from_numpy(np.ascontiguousarray(scale.reshape(R, -1))),
            self.n_sub,
            self.low,
            self.high,
            offset=None
            if offset is None
            else torch.from_numpy(np.ascontiguousarray(offset.reshape(R, -1))),
            table=None if self.table is None else torch.tensor(self.table, dtype=torch.float32),
        )

    def write(self, data: NDArray[np.uint8], levels: NDArray[np.float32]) -> None:
        """Put levels (R, C) of the grid into the bytes (R, bytes of a row), in place."""
        blocks = self._blocks(data)
        R, B, _ = blocks.shape
        stored = (levels + self.zero).astype(np.uint8).reshape(R, B, self.n_values)
        self.put(blocks, stored)

    def _blocks(self, data: NDArray[np.uint8]) -> Bytes:
        blocks = data.view()
        blocks.shape = (len(data), -1, self.n_bytes)  # a view, or an error
        return blocks


def _half(blocks: Bytes, at: int) -> Scales:
    """The float16 at byte `at` of each block, (R, B, 1)."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2").astype(np.float32)


def _only_scale(at: int) -> Callable[[Bytes], tuple[Scales, Scales | None]]:
    return lambda blocks: (_half(blocks, at), None)


def _scale_and_least(blocks: Bytes) -> tuple[Scales, Scales | None]:
    return _half(blocks, 0), _half(blocks, 2)


def _put_nibbles(at: int) -> Callable[[Bytes, Levels], None]:
    """Value i of 32 in the low half of byte i, value i + 16 in the high half."""

    def put(blocks: Bytes, q: Levels) -> None:
        blocks[..., at : at + 16] = q[..., :16] & 15 | (q[..., 16:] & 15) << 4

    return put


def _put_five(at: int) -> Callable[[Bytes, Levels], None]:
    """The fifth bits of 32 values, then nibbles."""
    nibbles = _put_nibbles(at + 4)

    def put(blocks: Bytes, q: Levels) -> None:
        blocks[..., at : at + 4] = np.packbits(q >> 4, axis=-1, bitorder="little")
        nibbles(blocks, q)

    return put


def _put_q8_0(blocks: Bytes, q: Levels) -> None:
    blocks[..., 2:34] = q - 128  # as int8


def _k_scales(blocks: Bytes) -> tuple[Scales, Scales | None]:
    """q4_k and q5_k: eight scales and eight offsets of 6 bits each in 12 bytes, times a float16."""
    low, high, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=-1)
    least = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=-1)
    return _half(blocks, 0) * scale, -(_half(blocks, 2) * least)


def _put_pairs(blocks: Bytes, q: Levels, at: int) -> None:
    """Of each 64 values the first 32 in low halves, the others in high halves."""
    pairs = q.reshape(*q.shape[:2], 4, 2, 32) & 15
    blocks[..., at : at + 128] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(
        *q.shape[:2], 128
    )


def _put_q4_k(blocks: Bytes, q: Levels) -> None:
    _put_pairs(blocks, q, 16)


def _put_q5_k(blocks: Bytes, q: Levels) -> None:
    fifth = np.swapaxes(q.reshape(*q.shape[:2], 8, 32) >> 4, -1, -2)
    blocks[..., 16:48] = np.packbits(fifth, axis=-1, bitorder="little")[..., 0]
    _put_pairs(blocks, q, 48)


def _q6_k_scales(blocks: Bytes) -> tuple[Scales, Scales | None]:
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    return _half(blocks, 208) * scale, None


def _put_q6_k(blocks: Bytes, q: Levels) -> None:
    """Of each 128 values, in four parts of 32: nibbles of parts 0 | 2 and 1 | 3, then the four
    pairs of upper bits of all parts."""
    parts = q.reshape(*q.shape[:2], 2, 4, 32)
    nibbles = parts & 15
    low = nibbles[..., :2, :] | nibbles[..., 2:, :] << 4
    blocks[..., :128] = low.reshape(*q.shape[:2], 128)
    upper = parts >> 4
    high = upper[..., 0, :] | upper[..., 1, :] << 2 | upper[..., 2, :] << 4 | upper[..., 3, :] << 6
    blocks[..., 128:192] = high.reshape(*q.shape[:2], 64)


def _iq4_xs_scales(blocks: Bytes) -> tuple[Scales, Scales | None]:
    """Eight scales of 6 bits, less 32: upper pairs of bits, then nibbles."""
    upper = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> np.arange(0, 16, 2) & 3
    lower = (blocks[..., 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(upper.shape)
    return _half(blocks, 0) * ((lower | upper << 4).astype(np.float32) - 32), None


def _put_iq4_xs(blocks: Bytes, q: Levels) -> None:
    parts = q.reshape(*q.shape[:2], 8, 2, 16)
    both = parts[..., 0, :] | parts[..., 1, :] << 4
    blocks[..., 8:136] = both.reshape(*q.shape[:2], 128)


# by the names of precisions.py
LAYOUTS: dict[str, Layout] = {
    "q4_0": Layout(18, 32, 32, -8, 7, 8, _only_scale(0), _put_nibbles(2)),
    "q4_1": Layout(20, 32, 32, 0, 15, 0, _scale_and_least, _put_nibbles(4)),
    "q5_0": Layout(22, 32, 32, -16, 15, 16, _only_scale(0), _put_five(2)),
    "q5_1": Layout(24, 32, 32, 0, 31, 0, _scale_and_least, _put_five(4)),
    "q8_0": Layout(34, 32, 32, -127, 127, 128, _only_scale(0), _put_q8_0),
    "iq4_nl": Layout(18, 32, 32, 0, 15, 0, _only_scale(0), _put_nibbles(2), IQ4_VALUES),
    "q4_k": Layout(144, 256, 32, 0, 15, 0, _k_scales, _put_q4_k),
    "q5_k": Layout(176, 256, 32, 0, 31, 0, _k_scales, _put_q5_k),
    "q6_k": Layout(210, 256, 16, -32, 31, 32, _q6_k_scales, _put_q6_k),
    "iq4_xs": Layout(136, 256, 32, 0, 15, 0, _iq4_xs_scales, _put_iq4_xs, IQ4_VALUES),
}
