"""The table of precisions. To add one: a row here, and its function in lower.py or genai.py."""

from __future__ import annotations

from edgelm.targets.precision import AUTO, GENERATION, TASKS, WHOLE_TEXTS, Precision

# fmt: off
PRECISIONS: tuple[Precision, ...] = (
    Precision("fp32", "f32", 32.0, searched=WHOLE_TEXTS),
    Precision("fp16", "f16", 16.0),
    Precision("bf16", "bf16", 16.0, tasks=GENERATION),
    Precision("int8", "q8_0", 8.0, searched=TASKS, is_smoothed=True),
    Precision("int8-static", "q8_0", 8.0, tasks=WHOLE_TEXTS, is_calibrated=True, is_smoothed=True),
    Precision("int4", "q4_0", 4.0, searched=TASKS, recovered_bits=4),
    Precision(AUTO, None, 4.0, tasks=WHOLE_TEXTS, recovered_bits=4),
)
# fmt: on

# Types that auto chooses from, by bits of a weight.
KINDS = INT4, INT8, INT8_BLOCKS, FLOAT = ("int4", "int8", "int8-blocks", "float32")
