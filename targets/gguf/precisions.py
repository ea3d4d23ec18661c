"""The one table of precisions: name -> llama.cpp's file type number.

Left out are the types that llama.cpp refuses to make without an importance matrix (iq1_s, iq1_m,
iq2_*, iq3_xxs, iq3_xs, q2_k_s) and those it makes for mixtures of experts only.
"""

from __future__ import annotations

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
    "q2_k": 10,
    "tq2_0": 37,
    "tq1_0": 36,
    "q2_0": 41,
    "q1_0": 40,
}

PRECISIONS: tuple[str, ...] = (*FLOAT_FILE_TYPES, *QUANTIZED_FILE_TYPES)
