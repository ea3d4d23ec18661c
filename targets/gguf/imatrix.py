"""The importance matrix: how large the values are that each column of a matrix meets.

Of a matrix W (R, C) and the vectors x (C,) that it is multiplied with on some texts, it holds the
sum of x_j^2 for every column j, and how many vectors there were. llama.cpp's quantizer weighs a
column's rounding errors by the mean. The file is the one llama-imatrix writes and llama-quantize
reads: a GGUF file with NAME.in_sum2 and NAME.counts for each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import MissingExtra, ModelError

CHUNK_TOKENS = 512  # of a text that is looked at in one piece
_SUMS, _COUNTS = ".in_sum2", ".counts"
_PREFIX = "blk."  # llama-imatrix leaves out what is not in a block, and so do we
# Columns that were 0 on all texts would cost nothing to get wrong, and a block of them ends
# the process in some of llama.cpp's quantizers.
_LEAST = 1e-6  # of the mean over all columns


@dataclass(frozen=True)
class Imatrix:
    """Sums and counts by the tensor's name in the file."""

    sums: dict[str, NDArray[np.float32]]  # (C,) each
    counts: dict[str, int]
    n_chunks: int = 0

    def means(self) -> dict[str, NDArray[np.float32]]:
        """What the quantizer weighs columns by: all above 0."""
        return {name: _mean(sums, self.counts[name]) for name, sums in self.sums.items()}


def _mean(sums: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    average = float(sums.mean(dtype=np.float64))
    if count == 0 or average == 0:
        return np.ones_like(sums)
    return (np.maximum(sums, _LEAST * average) / count).astype(np.float32)


def wanted(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Of the file's matrices (R, C) those that an importance matrix covers: name -> C. Matrices of
    experts, which have a third axis, are not among them."""
    return {n: shape[1] for n, shape in shapes.items() if n.startswith(_PREFIX) and len(shape) == 2}


def check_covers(imatrix: Imatrix, shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raise ModelError unless it has each matrix that it shall cover, with as many columns."""
    for name, C in wanted(shapes).items():
        sums = imatrix.sums.get(name)
        if sums is None or len(sums) != C:
            has = "nothing" if sums is None else f"{len(sums)} columns"
            raise ModelError(
                f"{origin}: it has {has} for {name}, the model {C} columns",
                hint="an importance matrix fits the model that it was made from alone",
            )


def write_imatrix(path: Path, imatrix: Imatrix, dataset: str) -> None:
    """Write it as llama-imatrix does. Raises MissingExtra."""
    gguf = _gguf()

    class Writer(gguf.GGUFWriter):
        def add_architecture(self) -> None:
            """Such a file is of no architecture."""

    writer = Writer(path, arch="")
    try:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", imatrix.n_chunks)
        writer.add_uint32("imatrix.chunk_size", CHUNK_TOKENS)
        for name in sorted(imatrix.sums):
            count = np.array([[imatrix.counts[name]]], np.float32)
            writer.add_tensor(name + _SUMS, imatrix.sums[name].reshape(1, -1))
            writer.add_tensor(name + _COUNTS, count)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read what `write_imatrix` or llama-imatrix wrote. Raises ModelError, MissingExtra."""
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(path)
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        chunks = reader.get_field("imatrix.chunk_count")
        n_chunks = int(chunks.contents()) if chunks is not None else 0
    except (OSError, ValueError, IndexError, KeyError) as err:
        raise ModelError(
            f"{path}: not an importance matrix in GGUF format: {err}",
            hint="llama-imatrix --in-file OLD --output-format gguf -o NEW converts an old one",
        ) from err
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, int] = {}
    for key in found:
        name = key.removesuffix(_SUMS)
        if name == key:
            continue
        count = found.get(name + _COUNTS)
        values = found[key]
        if count is None or values.dtype != np.float32 or count.dtype != np.float32:
            raise ModelError(f"{path}: {name} has no counts, or is not of float32")
        if count.size != 1:
            raise ModelError(f"{path}: {name} is of a mixture of {count.size} experts")
        if not (np.isfinite(values).all() and (values >= 0).all() and count.item() >= 0):
            raise ModelError(f"{path}: {name} holds values that are no sums of squares")
        sums[name], counts[name] = values.ravel(), int(count.item())
    if not sums:
        raise ModelError(f"{path}: there is no importance matrix in it")
    return Imatrix(sums, counts, n_chunks)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as err:
        raise MissingExtra("gguf", "compile") from err
    return gguf
