"""What each type of each matrix takes in a variant's files and costs the task: the table that the
types of the precision `auto` are chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgelm.runtime.errors import ModelError
from edgelm.targets.precision import Grade

# Least bits of a weight -> the grade of mixed types.
_LIKE: dict[float, Grade] = {
    32.0: "f32", 8.0: "q8_0", 6.0: "q6_k", 5.0: "q5_0", 4.0: "q4_0", 3.0: "q3_k_m", 0.0: "q2_k",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A matrix in one type."""

    kind: str
    n_bytes: int  # in the file, padding included
    cost: float  # in the unit of `curvature.Term`, to be compared with others of the task


@dataclass(frozen=True)
class Row:
    """A matrix."""

    name: str
    n_weights: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Table:
    """All matrices that may change, and the bytes of all else."""

    rows: tuple[Row, ...]
    rest_bytes: int


def restricted(rows: Sequence[Row], name: str, kind: str) -> tuple[Row, ...]:
    """With one matrix in a type that is given. Raises ModelError for a type that it has not."""
    found: list[Row] = []
    for row in rows:
        if row.name == name:
            options = tuple(option for option in row.options if option.kind == kind)
            if not options:
                had = ", ".join(option.kind for option in row.options)
                raise ModelError(f"{name} cannot be of type {kind} in auto: it can be {had}")
            row = replace(row, options=options)
        found.append(row)
    return tuple(found)


def grade_like(bits: float) -> Grade:
    """The grade whose limits hold for files that spend so many bits on a weight."""
    return next(name for least, name in _LIKE.items() if bits >= least)
