"""What the teacher answers to each row of a training, computed once and kept on disk.

    FOLDER/teacher.json    arrays, rows, and how many batches are done
    FOLDER/NAME.bin        one array: the values of all rows behind each other, in the order asked

A row has one or more places: its tokens, its targets, or one for the whole text. Files are mapped
into memory, so memory does not grow with them; what a killed run has done is not done again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import StorageError
from edgelm.runtime.files import storage_errors, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "teacher.json"
SAVED_EVERY = 64  # batches
ROW = "row"  # key of a training row that says which of the teacher's answers is its
PREFIX = "teacher_"  # of the teacher's answers in a training batch
KEPT_TOKENS = 64  # of each distribution over a vocabulary
WHOLE_VOCABULARY = 1024  # one of so many tokens is kept whole

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Array:
    """One array of the answers: at each place `shape` values of `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_row: bool = False  # one place a row, however many the other arrays have

    @property
    def place_bytes(self) -> int:
        """Of one place."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Teacher:
    """The answers on disk, all of them. Raises StorageError where some are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage_errors(folder):
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["done"] != len(index["batches"]):
            raise StorageError(
                f"{folder}: the teacher has answered {index['done']} of "
                f"{len(index['batches'])} batches",
                hint="compile again: it goes on from there",
            )
        self._arrays = [
            Array(a["name"], a["dtype"], tuple(a["shape"]), a["per_row"]) for a in index["arrays"]
        ]
        order = np.array([i for batch in index["batches"] for i in batch], np.int64)
        places = np.array(index["places"], np.int64)
        self._rank = np.empty(len(order), np.int64)  # of each row, as it was asked
        self._rank[order] = np.arange(len(order))
        self._starts = np.concatenate([[0], np.cumsum(places[order])])
        self._maps = {a.name: self._mapped(a) for a in self._arrays}

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rank)

    def rows(self, numbers: Sequence[int]) -> Values:
        """The answers of these rows, those of all their places behind each other, by name."""
        return {
            array.name: np.concatenate([self._row(array, i) for i in numbers])
            for array in self._arrays
        }

    def _row(self, array: Array, i: int) -> NDArray[Any]:
        rank = self._rank[i]
        if array.per_row:
            return self._maps[array.name][rank : rank + 1]
        return self._maps[array.name][self._starts[rank] : self._starts[rank + 1]]

    def _mapped(self, array: Array) -> NDArray[Any]:
        shape = (len(self) if array.per_row else int(self._starts[-1]), *array.shape)
        if 0 in shape:  # nothing can be mapped
            return np.empty(shape, array.dtype)
        with storage_errors(self.folder):
            return np.memmap(_file(self.folder, array), array.dtype, "r", shape=shape)


def record(
    folder: Path,
    arrays: Sequence[Array],
    places: Sequence[int],
    batches: Sequence[Sequence[int]],
    answer: Callable[[Sequence[int]], Values],
    advance: Callable[[int, int], None] | None = None,
) -> Teacher:
    """Ask the teacher for the rows of each batch, unless it was asked, and keep what it says.

    Row i has `places[i]` places and stands in one batch. `answer(rows)` gives each array for these
    rows, their places behind each other. A run that goes on has the same arguments, else it begins
    anew. Raises StorageError."""
    index = {
        "arrays": [asdict(array) for array in arrays],
        "places": [int(n) for n in places],
        "batches": [[int(i) for i in batch] for batch in batches],
    }
    index = json.loads(json.dumps(index))  # as it is read back
    with storage_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        streams = {a.name: stack.enter_context(_file(folder, a).open("ab")) for a in arrays}
        done = _done(folder / INDEX, index)
        sizes = _sizes(arrays, places, batches[:done])
        if any(streams[name].tell() < size for name, size in sizes.items()):
            done, sizes = 0, dict.fromkeys(sizes, 0)
        for name, size in sizes.items():  # what stands behind was not yet known to be whole
            streams[name].truncate(size)

        def save(n: int) -> None:
            for stream in streams.values():
                stream.flush()
                os.fsync(stream.fileno())
            write_atomic(folder / INDEX, json.dumps({**index, "done": n}))

        for number in range(done, len(batches)):
            rows = batches[number]
            said = answer(rows)
            for array in arrays:
                n = len(rows) if array.per_row else sum(places[i] for i in rows)
                values = np.ascontiguousarray(said[array.name], array.dtype)
                if values.shape != (n, *array.shape):
                    raise ValueError(f"{array.name}: {values.shape} for {n} places")
                streams[array.name].write(values.tobytes())
            if advance is not None:
                advance(number + 1, len(batches))
            if (number + 1) % SAVED_EVERY == 0:
                save(number + 1)
        save(len(batches))
    return Teacher(folder)


def _file(folder: Path, array: Array) -> Path:
    return folder / f"{array.name}.bin"


def _sizes(
    arrays: Sequence[Array], places: Sequence[int], batches: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Bytes of each array once these batches are answered, by name."""
    rows = [i for batch in batches for i in batch]
    n_places = sum(places[i] for i in rows)
    return {a.name: (len(rows) if a.per_row else n_places) * a.place_bytes for a in arrays}


def _done(path: Path, index: dict[str, Any]) -> int:
    """Batches that an earlier run with the same arguments has finished."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return 0
    done = int(found.pop("done", 0))
    return done if found == index else 0


def token_arrays(n_vocab: int) -> list[Array]:
    """The arrays that `token_values` fills: float16, whole where the vocabulary is small, else the
    KEPT_TOKENS likeliest tokens and the probability of all others together."""
    if n_vocab <= WHOLE_VOCABULARY:
        return [Array("log_probs", "float16", (n_vocab,))]
    return [
        Array("log_probs", "float16", (KEPT_TOKENS + 1,)),
        Array("ids", "int32", (KEPT_TOKENS,)),
    ]


def token_values(logits: Tensor, temperature: float = 1.0) -> Values:
    """The teacher's logits (N, V) as what is kept of them, for `losses.token_divergence`."""
    import torch

    from edgelm.compiler.distil.losses import FLOOR, kept_and_rest

    log_probs = torch.log_softmax(logits.float() / temperature, -1)
    if logits.shape[-1] <= WHOLE_VOCABULARY:
        return {"log_probs": log_probs.clamp(min=FLOOR).half().cpu().numpy()}
    ids = log_probs.topk(KEPT_TOKENS, -1).indices
    kept = kept_and_rest(log_probs, ids).clamp(min=FLOOR)
    return {"log_probs": kept.half().cpu().numpy(), "ids": ids.int().cpu().numpy()}
