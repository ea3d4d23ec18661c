"""Blocks of weights between the float types of a checkpoint and those of a GGUF file.

numpy has no bfloat16: such values stand in uint16 arrays, the upper halves of float32 values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError

# precision of the file -> as numpy holds it
FLOATS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}
# all bits of the exponent, set in infinities and in what is no number
_EXPONENTS = {"f": 0x7C00, "u": 0x7F80}


def to_float32(block: NDArray[Any]) -> NDArray[np.float32]:
    """The values as float32; float64 is rounded."""
    if block.dtype.kind == "u":
        return (block.astype(np.uint32) << 16).view(np.float32)
    return block.astype(np.float32, copy=False)


def convert(block: NDArray[Any], precision: str, name: str) -> NDArray[Any]:
    """The block in `precision`, the block itself where that is its type.

    Raises ModelError for values that are not finite or leave float16's range."""
    if block.dtype == FLOATS[precision]:
        if not _is_finite(block):
            raise ModelError(f"{name} holds values that are not finite")
        return block
    values = to_float32(block)
    if not np.isfinite(values).all():
        raise ModelError(f"{name} holds values that are not finite")
    if precision == "f32":
        return values
    if precision == "bf16":
        return _to_bfloat16(values)
    with np.errstate(over="raise"):
        try:
            return values.astype(np.float16)
        except FloatingPointError as err:
            raise ModelError(
                f"{name} holds values beyond float16's range",
                hint="use the precision bf16 or f32",
            ) from err


def _is_finite(block: NDArray[Any]) -> bool:
    if block.dtype.kind == "f" and block.dtype.itemsize > 2:
        return bool(np.isfinite(block).all())
    exponent = _EXPONENTS[block.dtype.kind]
    return not ((block.view(np.uint16) & exponent) == exponent).any()


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
