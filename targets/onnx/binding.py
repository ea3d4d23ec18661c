"""Inputs and outputs that stay in one place of a device's memory, batch after batch.

Letters: B sequences in a batch, T tokens of the longest, C what one row of the output holds.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgelm.runtime.engine import BatchLimits, TokenBatch
from edgelm.targets.onnx.feeds import feeds


class BoundBuffers:
    """Buffers of a session for batches within `limits`. One caller at a time."""

    def __init__(
        self,
        session: ort.InferenceSession,
        output: str,
        n_columns: int,
        limits: BatchLimits,
        device: str,
        index: int,
    ) -> None:
        """`output` is float32 (B, n_columns); `device` is cuda or cpu."""
        self._session, self._output, self._C = session, output, n_columns
        self._limits, self._place = limits, (device, index)
        self._binding = session.io_binding()
        make = ort.OrtValue.ortvalue_from_shape_and_type
        names = [i.name for i in session.get_inputs()]
        n = limits.max_tokens
        self._inputs = {name: make([n], np.int64, device, index) for name in names}
        # A copy to the device is of a whole buffer; 128 kB take microseconds.
        self._staged = {name: np.zeros(n, np.int64) for name in names}
        rows = limits.max_sequences * n_columns
        self._rows = make([rows], np.float32, device, index)

    def fits(self, batch: TokenBatch) -> bool:
        """Whether `run` has room for it."""
        B, T = batch.input_ids.shape
        limits = self._limits
        return limits.max_sequences >= B and limits.max_tokens >= B * T

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The output (B, C), of the caller's own. Raises what ONNX Runtime does, RuntimeError."""
        B, T = batch.input_ids.shape
        binding, place = self._binding, self._place
        for name, array in feeds(self._inputs, batch).items():
            buffer, staged = self._inputs[name], self._staged[name]
            staged[: B * T] = array.reshape(-1)
            buffer.update_inplace(staged)
            binding.bind_input(name, *place, np.int64, (B, T), buffer.data_ptr())
        shape, pointer = (B, self._C), self._rows.data_ptr()
        binding.bind_output(self._output, *place, np.float32, shape, pointer)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return self._rows.numpy()[: B * self._C].reshape(B, self._C).copy()
