"""An importance matrix out of llama.cpp's own run of a file, as llama-imatrix makes it.

For files whose graph edgelm has no plan of: which layer of the Hugging Face model a matrix came
from is then not known, but llama.cpp tells what each matrix is multiplied with.

Letters: R rows and C columns of a matrix.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import Chunk, DecoderOptions, EngineOptions, TokenBatch
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.convert import Converted
from edgelm.targets.gguf.decoder import GgufDecoder
from edgelm.targets.gguf.engine import GgufSession
from edgelm.targets.gguf.imatrix import Imatrix, wanted

_F32 = 0
_AT_ONCE = 128  # tokens of which logits are computed: the last layer runs for these alone
_OBJECT_BYTES = 32  # what ggml's allocator puts before a tensor


class _Tensor(ctypes.Structure):
    """ggml's struct ggml_tensor."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),  # sizes, innermost first
    ("nb", ctypes.c_size_t * 4),  # strides in bytes
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Watch:
    """Adds up the squares of what the matrices named in `columns` are multiplied with."""

    def __init__(self, columns: dict[str, int]) -> None:
        self._sums = {name: np.zeros(C) for name, C in columns.items()}
        self.counts = dict.fromkeys(columns, 0)
        library = bindings.load()
        self._op = library._lib.ggml_op_desc
        self._op.argtypes, self._op.restype = [ctypes.c_void_p], ctypes.c_char_p
        # it must outlive the context
        self.callback = library.ggml_backend_sched_eval_callback(self._look)

    def sums(self) -> dict[str, NDArray[np.float32]]:
        """By name, (C,) each."""
        return {name: values.astype(np.float32) for name, values in self._sums.items()}

    def _look(self, address: int, asks: bool, _: object) -> bool:
        """Whether the step is to be seen; then, once it is done, look at it and go on."""
        name, values = self._operands(address)
        if asks or name is None:
            return not asks or name is not None
        rows = _array(values)
        self._sums[name] += np.square(rows, dtype=np.float64).sum(axis=0)
        self.counts[name] += len(rows)
        return True

    def _operands(self, address: int) -> tuple[str | None, Any]:
        """(the matrix's name, what it is multiplied with); None for any other step."""
        if self._op(address) != b"MUL_MAT":
            return None, None
        step = _Tensor.from_address(address)
        name = step.src[0].contents.name.decode("utf-8", "replace")
        values = step.src[1].contents
        if name not in self._sums or values.type != _F32 or values.nb[0] != 4:
            return None, None
        return name, values


def watched(
    made: Converted,
    task: Task,
    text: TextLimits,
    threads: int | None,
    batches: Iterable[TokenBatch],
    advance: Callable[[int], None] = lambda n_tokens: None,
) -> Imatrix:
    """Run the converted file over the batches; `advance` is told the tokens of each.

    Raises ModelError when llama.cpp cannot be watched, tells nothing of a matrix, or what it tells
    is not finite; what the engine raises."""
    _check_layout()
    watch = _Watch(wanted(made.matrices))
    run, close = _open(made, task, text, threads, watch.callback)
    n_chunks = 0
    try:
        for batch in batches:
            run(batch)
            n_chunks += len(batch.lengths)
            advance(batch.n_tokens)
    finally:
        close()
    if n_chunks == 0:
        raise ModelError("an importance matrix needs at least one text")
    found = Imatrix(watch.sums(), watch.counts, n_chunks)
    for name, values in found.sums.items():
        if found.counts[name] == 0 or not np.isfinite(values).all():
            why = "not finite" if found.counts[name] else "not told by llama.cpp"
            raise ModelError(f"the values that {name} is multiplied with are {why}")
    return found


def _open(
    made: Converted, task: Task, text: TextLimits, threads: int | None, callback: Any
) -> tuple[Callable[[TokenBatch], object], Callable[[], None]]:
    """(what runs a batch, what closes the engine)."""
    folder, variant = made.path.parent, made.variant
    if task.kind != "text-generation":
        session = GgufSession(folder, variant, task, EngineOptions("cpu", threads), callback)
        return session.run, session.close
    decoder = GgufDecoder(folder, variant, text, DecoderOptions("cpu", threads), callback)

    def run(batch: TokenBatch) -> None:
        for ids, length in zip(batch.input_ids, batch.lengths.tolist(), strict=True):
            decoder.truncate(0, 0)
            for start in range(0, length, _AT_ONCE):
                part = ids[start : min(start + _AT_ONCE, length)]
                decoder.extend([Chunk(0, part, len(part))])

    return run, decoder.close


def _array(values: Any) -> NDArray[np.float32]:
    """A float32 tensor of ggml's as rows (n, C); a view of its memory where that allows."""
    shape, strides = tuple(reversed(values.ne)), tuple(reversed(values.nb))
    n_bytes = 4 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    memory = memoryview((ctypes.c_char * n_bytes).from_address(values.data))
    array = np.ndarray(shape, np.float32, memory, strides=strides)
    return array.reshape(math.prod(shape[:-1]), shape[-1])


def _check_layout() -> None:
    """Raise ModelError unless llama.cpp's tensors are laid out as `_Tensor`."""
    overhead = bindings.load()._lib.ggml_tensor_overhead
    overhead.restype = ctypes.c_size_t
    if overhead() != _OBJECT_BYTES + ctypes.sizeof(_Tensor):
        raise ModelError(
            "an importance matrix of a converted model cannot be computed with this version of "
            "llama-cpp-python",
            hint="make one with llama-imatrix, and name it with --imatrix FILE",
        )
