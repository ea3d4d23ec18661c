"""llama.cpp's own quantizer, through llama-cpp-python."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.precisions import QUANTIZED_FILE_TYPES, TENSOR_TYPES, TENSORS_IN_NEED

# The head decides the label, and is small: it is kept at float16, its last matrix at float32.
_HEAD_TYPES = {"cls.weight": "f16", "cls.output.weight": "f32"}


@dataclass(frozen=True)
class How:
    """What decides the file beside its precision."""

    table: str | None = None  # the type of the token table, if not llama.cpp's choice
    tensor_types: Mapping[str, str] = field(default_factory=dict[str, str])  # name -> type
    # how much each column of a matrix weighs: name -> (C,), above 0
    importance: Mapping[str, NDArray[np.float32]] = field(
        default_factory=dict[str, NDArray[np.float32]]
    )


def choose_types(patterns: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Type of each tensor that a pattern is found in; the first pattern decides.

    llama.cpp takes patterns too, but its expressions differ from Python's and it says nothing of
    those that fit no tensor. Raises ModelError for these."""
    found: dict[str, str] = {}
    for pattern, kind in patterns.items():
        hits = [name for name in names if re.search(pattern, name)]
        if not hits:
            raise ModelError(
                f"quantize.tensor_types: {pattern!r} is in no name of the model's matrices",
                hint=f"they are named like {', '.join(_few(names))}",
            )
        for name in hits:
            found.setdefault(name, kind)
    return found


def quantize_file(source: Path, target: Path, precision: str, how: How) -> None:
    """Quantize the float file `source` into `target`. Raises ModelError with llama.cpp's reason."""
    for name, kind in how.tensor_types.items():
        if kind in TENSORS_IN_NEED and name not in how.importance:  # would end the process
            raise ModelError(
                f"{name} cannot be of type {kind}: the importance matrix does not cover it",
                hint="give it another type in quantize.tensor_types",
            )
    library = bindings.load()
    params = library.llama_model_quantize_default_params()
    params.ftype = QUANTIZED_FILE_TYPES[precision]
    if how.table is not None:
        params.token_embedding_type = TENSOR_TYPES[how.table]
    overrides = _overrides(library, {**_HEAD_TYPES, **how.tensor_types})
    params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))
    importance = _importance(library, how.importance)
    if importance is not None:
        params.imatrix = ctypes.cast(importance, type(params.imatrix))
    bindings.last_errors()
    status = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"llama.cpp cannot quantize this model to {precision}: {bindings.last_errors()}"
        )


def _overrides(library: Any, types: Mapping[str, str]) -> Any:
    """An array of (pattern, type); the last one stays empty: the end."""
    array = (library.llama_model_tensor_override * (len(types) + 1))()
    for slot, (name, kind) in zip(array, types.items(), strict=False):
        slot.pattern, slot.type = f"^{re.escape(name)}$".encode(), TENSOR_TYPES[kind]
    return array


def _importance(library: Any, importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """An array of (name, values, how many) that points into the matrices; None where none are."""
    if not importance:
        return None
    array = (library.llama_model_imatrix_data * (len(importance) + 1))()
    for slot, (name, values) in zip(array, importance.items(), strict=False):
        assert values.dtype == np.float32 and values.flags.c_contiguous
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(type(slot.data))
    return array


def _few(names: Sequence[str]) -> list[str]:
    """One name of each kind of matrix."""
    kinds = {re.sub(r"\d+", "0", name): name for name in reversed(names)}
    return sorted(kinds.values())
