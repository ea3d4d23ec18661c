"""What a decoder gives for a text: its hidden states, pooled, and none of its logits.

llama.cpp computes the logits of every token whether they are wanted or not, a fifth of the work of
SmolLM2-135M and more than half of a Gemma 3 of 270 million weights. Its graph is therefore stopped
before them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.buffers import Buffers, Row

# llama.cpp keeps room for the logits of each: 25 MB for a vocabulary of 49,152. Calls of 256 are
# 2 % faster with short texts (SmolLM2-135M), those of 64 are 5 % slower.
TOKENS_A_CALL = 128
# llama.cpp's name for the hidden states, even where they are not pooled; without a match the logits
# are computed too, and nothing else changes
_HIDDEN_STATES = b"result_embd_pooled"


def stop_before_logits(library: Any) -> Any:
    """A callback for `cb_eval` of a context's parameters; keep it as long as the context."""
    kind: Any = library.ggml_backend_sched_eval_callback
    try:
        name_of = library._lib.ggml_get_name
    except AttributeError:  # it stands in another library, where Windows does not look
        return kind()
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

    def wants(tensor: int, ask: bool, _user_data: Any) -> bool:
        """Asked of each tensor whether it is wanted, and when that is there, whether to go on."""
        return ask and name_of(tensor) == _HIDDEN_STATES

    return kind(wants)


def decode(
    library: Any,
    context: Any,
    buffers: Buffers,
    ids: NDArray[np.int32],
    row: Row,
    *,
    begins: bool,
) -> NDArray[np.float32]:
    """The hidden states (n, H) of the tokens `ids` (n,) that stand where `row` says; `begins`: of
    new texts. Raises TargetUnavailable.

    To be called on a `OneThread`: on the main one Ctrl-C would be raised inside the callback, where
    nobody hears of it."""
    if begins:
        library.llama_memory_clear(library.llama_get_memory(context), False)
    bindings.require(library.llama_decode(context, buffers.fill(ids, row)))
    values = library.llama_get_embeddings(context)
    return np.ctypeslib.as_array(values, shape=(len(ids), buffers.n_embd)).copy()


# what is run, and where its outcome goes
_Call = tuple[Callable[[], NDArray[np.float32]], "SimpleQueue[NDArray[np.float32] | Exception]"]


class OneThread:
    """Runs calls on a thread of its own, one after another: what an interrupt of the caller leaves
    under way is over before the next begins.

    Made of what an interrupt cannot leave half done: `concurrent.futures` may start two threads for
    one, or keep a lock."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._calls,), daemon=True)
        self._thread.start()

    def __call__(self, call: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """What it returns. Raises what it raises."""
        answer: SimpleQueue[NDArray[np.float32] | Exception] = SimpleQueue()
        self._calls.put((call, answer))
        found = answer.get()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Wait for a call under way, and end the thread."""
        self._calls.put(None)
        self._thread.join()


def _work(calls: SimpleQueue[_Call | None]) -> None:
    while (wanted := calls.get()) is not None:
        call, answer = wanted
        try:
            answer.put(call())
        except Exception as err:  # noqa: BLE001 the caller raises it
            answer.put(err)


def pool(
    hidden: NDArray[np.float32], lengths: NDArray[np.int32], pooling: str
) -> NDArray[np.float32]:
    """hidden (n, H) of sequences of `lengths` (B,), one behind another -> (B, H): mean or last."""
    ends = np.cumsum(lengths)
    if pooling == "last":
        return hidden[ends - 1]
    sums = np.add.reduceat(hidden, ends - lengths)
    return np.divide(sums, lengths[:, None], dtype=np.float32)
