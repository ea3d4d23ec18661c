"""Calibration: the range of each linear layer's input over the training texts.

Two passes over the batches: smallest and largest value of each tensor, then, where the method asks
for it, a histogram between them. Padding is left out. Nothing of a batch is kept.

Methods:
    minmax      everything seen is representable
    percentile  the outermost 0.01 % is clipped
    entropy     the clipping threshold whose 8-bit histogram is nearest to the true one (KL); it
                may clip the few large activations that BERT-like models rely on, so it never
                gives up more than half of the range

Letters: B sequences in a batch, T tokens of the longest, K width of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgelm.runtime.engine import TokenBatch
from edgelm.runtime.errors import ModelError
from edgelm.targets.onnx.feeds import feeds
from edgelm.targets.onnx.store import serialize

Method = Literal["minmax", "entropy", "percentile"]
Batches = Callable[[], Iterable[TokenBatch]]

N_BINS = 2048
CLIPPED_SHARE = 1e-4
LEVELS = 128  # of an 8-bit number, on one side of zero


@dataclass
class Seen:
    """What was seen of one tensor."""

    low: float = np.inf
    high: float = -np.inf
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))

    def clipped(self, method: Method) -> tuple[float, float]:
        """The range to represent, zero included."""
        low, high = self.low, self.high
        edges = np.linspace(low, high, N_BINS + 1)
        if method == "percentile":
            below = np.cumsum(self.counts) / self.counts.sum()
            low = float(edges[np.searchsorted(below, CLIPPED_SHARE / 2)])
            high = float(edges[np.searchsorted(below, 1 - CLIPPED_SHARE / 2) + 1])
        elif method == "entropy":
            centers = np.abs((edges[:-1] + edges[1:]) / 2)
            limit = max(-low, high)
            # Half as many bins: finer than the histogram's own they would stand empty by turns.
            counts, _ = np.histogram(centers, N_BINS // 2, (0, limit), weights=self.counts)
            threshold = least_divergent(counts) * limit
            low, high = max(low, -threshold), min(high, threshold)
        return min(low, 0.0), max(high, 0.0)


def calibrate(
    model: ir.Model, names: Iterable[str], batches: Batches, method: Method
) -> dict[str, tuple[float, float]]:
    """The range of each named tensor. Raises ModelError when there is no batch."""
    seen = {name: Seen() for name in names}
    session = _session_with_outputs(model, tuple(seen))
    for tensors in _tensors(session, batches, seen):
        for name, x in tensors.items():
            seen[name].low = min(seen[name].low, float(x.min()))
            seen[name].high = max(seen[name].high, float(x.max()))
    if any(not np.isfinite(s.low) for s in seen.values()):
        raise ModelError(
            "int8-static needs calibration texts, there are none",
            hint="give training data, or choose the precision int8",
        )
    if method != "minmax":
        for tensors in _tensors(session, batches, seen):
            for name, x in tensors.items():
                s = seen[name]
                s.counts += np.histogram(x, N_BINS, (s.low, s.high))[0]
    return {name: s.clipped(method) for name, s in seen.items()}


def channel_peaks(
    model: ir.Model, names: Iterable[str], batches: Batches
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude (K,) of each channel of each named tensor. Raises ModelError when there
    is no batch."""
    peaks: dict[str, NDArray[np.float32]] = {}
    wanted = dict.fromkeys(names)
    session = _session_with_outputs(model, tuple(wanted))
    for tensors in _tensors(session, batches, wanted):
        for name, x in tensors.items():
            seen = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks[name], seen) if name in peaks else seen
    if peaks.keys() != wanted.keys():
        raise ModelError(
            "smoothing needs calibration texts, there are none", hint="give training data"
        )
    return peaks


def least_divergent(counts: NDArray[np.float64]) -> float:
    """counts of |x| from zero on -> share of the bins to keep, by smallest KL divergence."""
    best, share = np.inf, 1.0
    for n_kept in range(len(counts) // 2, len(counts) + 1, 16):
        p = counts[:n_kept].astype(np.float64)
        group = np.arange(n_kept) * LEVELS // n_kept
        filled = p > 0
        total = np.bincount(group, p, LEVELS)
        n_filled = np.maximum(np.bincount(group, filled, LEVELS), 1)
        q = np.where(filled, (total / n_filled)[group], 0.0)
        p[-1] += counts[n_kept:].sum()  # what is clipped lands on the last level
        both = (p > 0) & (q > 0)
        if not both.any() or q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        missing = p[(p > 0) & ~both].sum() * 20.0  # mass the quantized form cannot show
        divergence = float((p[both] * np.log(p[both] / q[both])).sum() + missing)
        if divergence < best:
            best, share = divergence, n_kept / len(counts)
    return share


def _session_with_outputs(model: ir.Model, names: tuple[str, ...]) -> ort.InferenceSession:
    graph = model.graph
    own = list(graph.outputs)
    by_name = {v.name: v for node in graph for v in node.outputs}
    graph.outputs.extend(by_name[n] for n in names if by_name[n] not in own)
    try:
        data = serialize(model)
    finally:
        while len(graph.outputs) > len(own):  # deleting a slice leaves the values marked as outputs
            graph.outputs.pop()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _tensors(
    session: ort.InferenceSession, batches: Batches, names: Mapping[str, object]
) -> Iterable[dict[str, NDArray[np.float32]]]:
    """For each batch the named tensors' real rows: (tokens, K), or (B, K) after pooling."""
    inputs = tuple(i.name for i in session.get_inputs())
    for batch in batches():
        is_real = np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
        arrays = session.run(list(names), feeds(inputs, batch))
        yield {
            name: x[is_real] if x.ndim == 3 and x.shape[:2] == is_real.shape else x
            for name, x in zip(names, map(np.asarray, arrays), strict=True)
        }
