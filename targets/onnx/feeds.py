"""A token batch as the ONNX file's inputs.

Letters: B sequences in a batch, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import TokenBatch


def feeds(names: Iterable[str], batch: TokenBatch) -> dict[str, NDArray[np.int64]]:
    """Only the named inputs, each int64 (B, T)."""
    T = batch.input_ids.shape[1]
    made: dict[str, NDArray[np.int64]] = {}
    for name in names:
        if name == "attention_mask":
            made[name] = (np.arange(T) < batch.lengths[:, None]).astype(np.int64)
        elif name == "input_ids":
            made[name] = batch.input_ids.astype(np.int64)
        else:
            made[name] = batch.type_ids.astype(np.int64)
    return made
