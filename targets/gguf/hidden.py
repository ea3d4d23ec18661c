"""What a decoder gives for a text: its hidden states, pooled, and none of its logits.

llama.cpp computes the logits of every token whether they are wanted or not, a fifth of the work of
SmolLM2-135M and more than half of a Gemma 3 of 270 million weights. Its graph is therefore stopped
before them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


class Caller:
    """Calls llama.cpp on a thread of its own.

    On the main thread Ctrl-C would be raised inside the callback, where nobody hears of it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "edgelm-llama.cpp")

    def __call__(self, function: Callable[..., int], *arguments: Any) -> int:
        """What the function returns. An interrupt is raised when it is done: it reads memory that
        the caller writes next."""
        future = self._thread.submit(function, *arguments)
        try:
            return future.result()
        except KeyboardInterrupt:
            wait([future])
            raise

    def close(self) -> None:
        """Wait for a call under way, and end the thread."""
        self._thread.shutdown()


def pool(
    hidden: NDArray[np.float32], lengths: NDArray[np.int32], pooling: str
) -> NDArray[np.float32]:
    """hidden (n, H) of sequences of `lengths` (B,), one behind another -> (B, H): mean or last."""
    ends = np.cumsum(lengths)
    if pooling == "last":
        return hidden[ends - 1]
    sums = np.add.reduceat(hidden, ends - lengths)
    return np.divide(sums, lengths[:, None], dtype=np.float32)
