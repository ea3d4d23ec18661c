"""The tables of precisions, name -> llama.cpp's file type number, and of single tensors' types.

Left out is what llama.cpp makes for mixtures of experts only (mxfp4_moe), and nvfp4, for which it
has no recipe of a whole file.
"""

from __future__ import annotations

from collections.abc import Iterable

FLOAT_FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 32}

QUANTIZED_FILE_TYPES: dict[str, int] = {
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_1": 9,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "q4_1": 3,
    "q4_0": 2,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "iq3_m": 27,
    "iq3_s": 26,
    "iq3_xs": 22,
    "iq3_xxs": 23,
    "q2_k": 10,
    "q2_k_s": 21,
    "iq2_m": 29,
    "iq2_s": 28,
    "iq2_xs": 20,
    "iq2_xxs": 19,
    "iq1_m": 31,
    "iq1_s": 24,
    "tq2_0": 37,
    "tq1_0": 36,
    "q2_0": 41,
    "q1_0": 40,
}

PRECISIONS: tuple[str, ...] = (*FLOAT_FILE_TYPES, *QUANTIZED_FILE_TYPES)
_Q8_0_BLOCK = 32  # values
# Files of types whose blocks layouts.py knows -> bits of a level, of most matrices.
RECOVERED_BITS: dict[str, int] = {
    **{name: 4 for name in ("q4_0", "q4_1", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")},
    **{name: 5 for name in ("q5_0", "q5_1", "q5_k_s", "q5_k_m")},
    "q6_k": 6,
    "q8_0": 8,
}

# Bits of a weight in the smallest type of such a file, block scales included; not of all files.
LEAST_BITS: dict[str, float] = {
    **{"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.5625, "q5_1": 6.0},
    **dict.fromkeys(("q5_k_m", "q5_k_s", "q5_0"), 5.5),
    "q4_1": 5.0,
    **dict.fromkeys(("q4_k_m", "q4_k_s", "q4_0"), 4.5),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), 4.25),
    **dict.fromkeys(("q3_k_l", "q3_k_m", "q3_k_s"), 3.4375),
    **dict.fromkeys(("q2_k", "auto"), 2.625),
}

# ggml's numbers of the types that a single tensor can be given
TENSOR_TYPES: dict[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q6_k": 14,
    "q5_k": 13,
    "q5_1": 7,
    "q5_0": 6,
    "q4_k": 12,
    "iq4_nl": 20,
    "iq4_xs": 23,
    "mxfp4": 39,
    "nvfp4": 40,
    "q4_1": 3,
    "q4_0": 2,
    "q3_k": 11,
    "iq3_s": 21,
    "iq3_xxs": 18,
    "q2_k": 10,
    "iq2_s": 22,
    "iq2_xs": 17,
    "iq2_xxs": 16,
    "iq1_m": 29,
    "iq1_s": 19,
    "tq2_0": 35,
    "tq1_0": 34,
    "q2_0": 42,
    "q1_0": 41,
}

# Types that auto chooses from, by bits of a weight. Left out are types that lose more than another
# of their size, that are made for weights of few values, or that take llama.cpp seconds to begin
# with (iq2_s, iq2_xs).
KINDS = (
    *("q2_k", "iq3_xxs", "iq3_s", "q3_k", "iq4_xs", "mxfp4"),
    *("q4_k", "iq4_nl", "q4_1", "q5_k", "q5_0", "q5_1", "q6_k", "q8_0"),
)

# Without an importance matrix llama.cpp refuses to make these; of tensors it aborts on some.
_FILES_IN_NEED = frozenset(
    {
        *("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s"),
        *("iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
    }
)
TENSORS_IN_NEED = frozenset({"iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"})
_OVER_FIVE_BITS = ("q8_0", "q6_k")  # which gain nothing worth a pass over texts


def needs_matrix(precision: str, tensor_types: Iterable[str] = ()) -> bool:
    """Whether this cannot be made without an importance matrix; `tensor_types` are single
    tensors' types."""
    if precision not in QUANTIZED_FILE_TYPES:
        return False
    return precision in _FILES_IN_NEED or not TENSORS_IN_NEED.isdisjoint(tensor_types)


def gains_by_matrix(precision: str, tensor_types: Iterable[str] = ()) -> bool:
    """Whether an importance matrix is worth computing."""
    if needs_matrix(precision, tensor_types):
        return True
    return precision in QUANTIZED_FILE_TYPES and precision not in _OVER_FIVE_BITS


def table_type(width: int) -> str:
    """Of a token table that an engine reads rows of: 8 bits, where its width allows."""
    return "f16" if width % _Q8_0_BLOCK else "q8_0"
