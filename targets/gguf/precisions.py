"""The table of precisions, a row each, and that of single tensors' types.

Left out is what llama.cpp makes for mixtures of experts only (mxfp4_moe), and nvfp4, for which it
has no recipe of a whole file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgelm.targets.precision import (
    AUTO,
    FLOATS,
    GENERATION,
    TASKS,
    WHOLE_TEXTS,
    Precision,
    find,
)


@dataclass(frozen=True)
class GgufPrecision(Precision):
    """One row."""

    file_type: int | None = None  # llama.cpp's number; AUTO has none
    matrix: Literal["none", "gains", "needs"] = "none"  # what an importance matrix is to it


_G = GgufPrecision
# fmt: off
PRECISIONS: tuple[GgufPrecision, ...] = (
    _G("f32", "f32", 32.0, file_type=0),
    _G("f16", "f16", 16.0, file_type=1, searched=TASKS),
    _G("bf16", "bf16", 16.0, file_type=32),
    # over five bits gain nothing worth a pass over texts
    _G("q8_0", "q8_0", 8.5, file_type=7, searched=TASKS, recovered_bits=8),
    _G("q6_k", "q6_k", 6.5625, file_type=18, searched=TASKS, recovered_bits=6),
    _G("q5_k_m", "q5_0", 5.5, file_type=17, matrix="gains", searched=TASKS, recovered_bits=5),
    _G("q5_k_s", "q5_0", 5.5, file_type=16, matrix="gains", recovered_bits=5),
    _G("q5_1", "q5_0", 6.0, file_type=9, matrix="gains", recovered_bits=5),
    _G("q5_0", "q5_0", 5.5, file_type=8, matrix="gains", searched=WHOLE_TEXTS, recovered_bits=5),
    _G("q4_k_m", "q4_0", 4.5, file_type=15, matrix="gains", searched=TASKS, recovered_bits=4),
    _G("q4_k_s", "q4_0", 4.5, file_type=14, matrix="gains", recovered_bits=4),
    _G("iq4_nl", "q4_0", 4.25, file_type=25, matrix="gains", recovered_bits=4),
    _G("iq4_xs", "q4_0", 4.25, file_type=30, matrix="gains", searched=GENERATION, recovered_bits=4),
    _G("q4_1", "q4_0", 5.0, file_type=3, matrix="gains", recovered_bits=4),
    _G("q4_0", "q4_0", 4.5, file_type=2, matrix="gains", searched=TASKS, recovered_bits=4),
    _G("q3_k_l", "q3_k_m", 3.4375, file_type=13, matrix="gains"),
    _G("q3_k_m", "q3_k_m", 3.4375, file_type=12, matrix="gains", searched=GENERATION),
    _G("q3_k_s", "q3_k_m", 3.4375, file_type=11, matrix="gains"),
    _G("iq3_m", "q3_k_m", file_type=27, matrix="gains"),
    _G("iq3_s", "q3_k_m", file_type=26, matrix="gains"),
    _G("iq3_xs", "q3_k_m", file_type=22, matrix="needs"),
    _G("iq3_xxs", "q3_k_m", file_type=23, matrix="needs"),
    _G("q2_k", "q2_k", 2.625, file_type=10, matrix="gains", searched=GENERATION),
    _G("q2_k_s", "q2_k", file_type=21, matrix="needs"),
    _G("iq2_m", "q2_k", file_type=29, matrix="needs"),
    _G("iq2_s", "q2_k", file_type=28, matrix="needs"),
    _G("iq2_xs", "q2_k", file_type=20, matrix="needs"),
    _G("iq2_xxs", "q2_k", file_type=19, matrix="needs"),
    _G("iq1_m", "q2_k", file_type=31, matrix="needs"),
    _G("iq1_s", "q2_k", file_type=24, matrix="needs"),
    _G("tq2_0", "q2_k", file_type=37, matrix="gains"),
    _G("tq1_0", "q2_k", file_type=36, matrix="gains"),
    _G("q2_0", "q2_k", file_type=41, matrix="gains"),
    _G("q1_0", "q2_k", file_type=40, matrix="gains"),
    _G(AUTO, None, 2.625),
)
# fmt: on

# Of whole files; QUANTIZED ones are made by llama.cpp's quantizer.
_FILE_TYPES = {row.name: row.file_type for row in PRECISIONS if row.file_type is not None}
_FLOAT_NAMES = {row.name for row in PRECISIONS if row.grade in FLOATS}
FLOAT_FILE_TYPES = {name: n for name, n in _FILE_TYPES.items() if name in _FLOAT_NAMES}
QUANTIZED_FILE_TYPES = {name: n for name, n in _FILE_TYPES.items() if name not in _FLOAT_NAMES}
_Q8_0_BLOCK = 32  # values

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

# Without an importance matrix llama.cpp aborts on some of these.
TENSORS_IN_NEED = frozenset({"iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"})


def needs_matrix(precision: str, tensor_types: Iterable[str] = ()) -> bool:
    """Whether this cannot be made without an importance matrix; `tensor_types` are single
    tensors' types."""
    if precision not in QUANTIZED_FILE_TYPES:
        return False
    return _matrix(precision) == "needs" or not TENSORS_IN_NEED.isdisjoint(tensor_types)


def gains_by_matrix(precision: str, tensor_types: Iterable[str] = ()) -> bool:
    """Whether an importance matrix is worth computing."""
    return needs_matrix(precision, tensor_types) or _matrix(precision) == "gains"


def _matrix(precision: str) -> str:
    row = find(PRECISIONS, precision)
    return "none" if row is None else row.matrix


def table_type(width: int) -> str:
    """Of a token table that an engine reads rows of: 8 bits, where its width allows."""
    return "f16" if width % _Q8_0_BLOCK else "q8_0"
