"""What each type of each matrix takes in the file and costs: a table of rows, one a matrix, written
as it grows, so that a table that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgelm.runtime.errors import ModelError
from edgelm.runtime.schema import decode, encode
from edgelm.targets.gguf.check import Header, TensorInfo, read_header
from edgelm.targets.gguf.curvature import Curvature
from edgelm.targets.gguf.rounding.file import padded, read_floats, size_with, tensor_bytes
from edgelm.targets.gguf.rounding.matrices import Rounder
from edgelm.targets.gguf.rounding.types import block_size

# By bits of a weight. Left out are types that lose more than another of their size, that are made
# for weights of few values, or that take llama.cpp seconds to begin with (iq2_s, iq2_xs).
KINDS = (
    *("q2_k", "iq3_xxs", "iq3_s", "q3_k", "iq4_xs", "mxfp4"),
    *("q4_k", "iq4_nl", "q4_1", "q5_k", "q5_0", "q5_1", "q6_k", "q8_0"),
)


@dataclass(frozen=True)
class Option:
    """A matrix in one type."""

    kind: str
    n_bytes: int  # in the file, padding included
    cost: float  # nats a prediction


@dataclass(frozen=True)
class Row:
    """A matrix."""

    name: str
    n_weights: int
    options: tuple[Option, ...]  # in the order of KINDS


@dataclass(frozen=True)
class Table:
    """All matrices that may change, and the bytes of all else."""

    rows: tuple[Row, ...]
    rest_bytes: int


def tabulate(
    source: Path, curvature: Curvature, path: Path, report: Callable[[int, int], None]
) -> tuple[Row, ...]:
    """The rows of the float file `source`; those that `path` lacks are made and written there.
    `report(done, of all)` is called.

    Raises ModelError when no matrix can change."""
    header = read_header(source)
    wanted = _wanted(header, curvature)
    if not wanted:
        raise ModelError(
            "no matrix of this model has a width of whole blocks of 32",
            hint="take the precision f16",
        )
    done = {row.name for row in _read_rows(path)} if path.is_file() else set()
    with path.open("a", encoding="utf-8") as out:
        for i, (name, tensor) in enumerate(wanted.items()):
            if name not in done:
                rounder = Rounder(read_floats(source, tensor), curvature.terms(name))
                row = _row(header, name, tensor, rounder)
                out.write(json.dumps(encode(row)) + "\n")
                out.flush()
            report(i + 1, len(wanted))
    return tuple(_read_rows(path))


def rest_bytes(source: Header, rows: Sequence[Row]) -> int:
    """Bytes of the file that are not of the rows' matrices."""
    first = {row.name: row.options[0] for row in rows}
    size = size_with(source, {name: option.kind for name, option in first.items()})
    return size - sum(option.n_bytes for option in first.values())


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


def fitting(C: int) -> tuple[str, ...]:
    """The types for rows of C weights. Where all fit, those of 256 are better than those of 32 of
    the same size."""
    found = tuple(kind for kind in KINDS if C % block_size(kind) == 0)
    if C % 256:
        return found
    return tuple(k for k in found if block_size(k) == 256 or k in ("iq4_nl", "q8_0"))


def _wanted(header: Header, curvature: Curvature) -> dict[str, TensorInfo]:
    return {
        name: tensor
        for name, tensor in header.tensors.items()
        if name in curvature and len(tensor.shape) == 2 and fitting(tensor.shape[1])
    }


def _row(header: Header, name: str, tensor: TensorInfo, rounder: Rounder) -> Row:
    R, C = tensor.shape
    options = (
        Option(kind, padded(header, tensor_bytes(tensor, kind)), rounder.cost(kind))
        for kind in fitting(C)
    )
    return Row(name, R * C, tuple(options))


def _read_rows(path: Path) -> Iterator[Row]:
    """The whole rows of a file; a line that was cut off is none, and is taken off the file."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        yield decode(Row, json.loads(line))
