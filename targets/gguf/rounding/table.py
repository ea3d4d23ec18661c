"""What each type of each matrix takes in the file and costs: a table of rows, one a matrix, written
as it grows, so that a table that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgelm.runtime.errors import ModelError
from edgelm.runtime.schema import decode, encode
from edgelm.targets.costs import Option, Row
from edgelm.targets.curvature import Curvature
from edgelm.targets.gguf.check import Header, TensorInfo, read_header
from edgelm.targets.gguf.precisions import KINDS
from edgelm.targets.gguf.rounding.file import padded, read_floats, size_with, tensor_bytes
from edgelm.targets.gguf.rounding.matrices import Rounder
from edgelm.targets.gguf.rounding.types import block_size


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
