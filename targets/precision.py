"""What a precision is: one record a row of a target's table, from which all else about it derives.

A row says what is true of the files; how they are made is the target's `lower`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from edgelm.runtime.manifest import TaskKind

AUTO = "auto"  # the precision whose matrices each have a type of their own, chosen by its cost

WHOLE_TEXTS: tuple[TaskKind, ...] = ("text-classification", "feature-extraction")
GENERATION: tuple[TaskKind, ...] = ("text-generation",)
TASKS: tuple[TaskKind, ...] = (*WHOLE_TEXTS, *GENERATION)

# How close files come to the model, from the closest on; each is named after the GGUF type that is
# typical of it. What a variant is held to stands by grade, in the compiler and in the runtime.
Grade = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_0", "q4_0", "q3_k_m", "q2_k"]
GRADES: tuple[Grade, ...] = get_args(Grade)
FLOATS: tuple[Grade, ...] = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Precision:
    """One row."""

    name: str
    grade: Grade | None  # None for AUTO, where `Lowered.graded_as` says it of each file
    # bits of a weight in the smallest type that such files hold, block scales included, if known
    least_bits: float | None = None
    tasks: tuple[TaskKind, ...] = TASKS  # whose models can be lowered to it
    searched: tuple[TaskKind, ...] = ()  # for which a search tries it unasked
    # bits of a level, of most matrices (AUTO: fewest), where `Target.grids` knows what files hold
    recovered_bits: int | None = None
    is_calibrated: bool = False  # made with training texts
    is_smoothed: bool = False  # its activations can lose their outliers to the weights


Row = TypeVar("Row", bound=Precision)  # which may have facts of the target's own


def names_for(rows: tuple[Precision, ...], task: TaskKind) -> tuple[str, ...]:
    """The precisions that a model of this task can be lowered to."""
    return tuple(row.name for row in rows if task in row.tasks)


def tasks_of(rows: tuple[Precision, ...]) -> tuple[TaskKind, ...]:
    """The tasks that any row can do."""
    return tuple(task for task in TASKS if names_for(rows, task))


def find(rows: tuple[Row, ...], name: str) -> Row | None:
    """The row of that name, if there is one."""
    return next((row for row in rows if row.name == name), None)
