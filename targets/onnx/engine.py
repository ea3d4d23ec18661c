"""The run-time half: an ONNX file opened with ONNX Runtime.

Letters: B sequences in a batch, T tokens of the longest, C classes, H hidden size.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import (
    onnxruntime_pybind11_state as native,  # pyright: ignore[reportAttributeAccessIssue]
)

from edgelm.runtime.cores import usable_cores
from edgelm.runtime.engine import BatchLimits, EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, TamperedError, TargetUnavailable, UsageError
from edgelm.runtime.files import identity
from edgelm.runtime.manifest import Task, Variant
from edgelm.targets.onnx.binding import BoundBuffers
from edgelm.targets.onnx.check import check_model
from edgelm.targets.onnx.feeds import feeds
from edgelm.targets.onnx.providers import (
    INSTALL,
    Placement,
    placements,
    preload,
    providers,
    why_not,
)

log = logging.getLogger(__name__)

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
OUTPUTS = {"text-classification": "logits", "feature-extraction": "embedding"}

# What ONNX Runtime raises, of a file and while it runs; they share no base but Exception.
ORT_ERRORS = (
    native.EngineError,
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.ModelLoaded,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
)


# Of those, what tells of a file and not of a device.
_BROKEN = (native.InvalidGraph, native.InvalidProtobuf, native.NoModel, native.NoSuchFile)

# On a CPU a batch's activations should stay in a core's cache. A GPU wants more.
_CPU_LIMITS = BatchLimits(max_sequences=64, max_tokens=256)
_GPU_LIMITS = BatchLimits(max_sequences=128, max_tokens=16384)

# Up to here one thread answers as fast as several: they lose what they gain by waiting for each
# other at every operator (MiniLM int8, 2 threads: 0.95 x at 16 tokens, 1.3 x at 256).
_TOKENS_OF_ONE_THREAD = 128

# ONNX Runtime's fused operator is slower on CPUs than the two it replaces: LayerNormalization has a
# vectorized kernel, SkipLayerNormalization has none (MiniLM int8: 23 % of the time instead of 5 %).
_SLOWER_FUSIONS = "SkipLayerNormFusion"


class OnnxSession:
    """An opened ONNX variant; `run` may be called from many threads at once.

    On a CPU it is a session of one thread, which any number of callers use at once. A long batch
    that comes alone goes to a second session of all threads, opened when the first such batch
    comes; it holds the weights once more. On a GPU it is one session, one batch at a time.
    """

    def __init__(self, folder: Path, variant: Variant, task: Task, options: EngineOptions) -> None:
        check_model(folder, model_path(variant), variant)
        self._files = [folder / entry.path for entry in variant.files]
        self._seen = [identity(path.stat()) for path in self._files]
        self._path = folder / model_path(variant)
        self._lock = threading.Lock()
        self._wide: ort.InferenceSession | None = None
        tried = placements(options.device, variant.precision, providers())
        session, self._placement = self._open_first(tried)
        self.device = self._placement.device
        on_gpu, path = self._placement.on_gpu, self._path
        self.limits = _GPU_LIMITS if on_gpu else _CPU_LIMITS
        self.parallel = 1 if on_gpu else options.threads or usable_cores()
        self._inputs = tuple(i.name for i in session.get_inputs())
        self._output = OUTPUTS[task.kind]
        unknown = set(self._inputs) - INPUTS
        shapes = {o.name: o.shape for o in session.get_outputs()}
        if unknown or self._output not in shapes:
            wrong = f"unknown inputs {sorted(unknown)}" if unknown else f"no output {self._output}"
            raise BundleError(f"{path}: not a file that edgelm wrote: {wrong}")
        width = (shapes[self._output] or [None])[-1]  # a name where the file leaves it open
        if task.labels and isinstance(width, int) and width != len(task.labels):
            raise BundleError(f"{path}: {width} outputs for {len(task.labels)} labels")
        self._session: ort.InferenceSession | None = session
        self._bound: BoundBuffers | None = None
        if on_gpu and isinstance(width, int):
            index = self._placement.gpu_index
            self._bound = BoundBuffers(session, self._output, width, self.limits, "cuda", index)

    def run(self, batch: TokenBatch, *, shared: bool = False) -> NDArray[np.float32]:
        """Logits (B, C), or pooled vectors (B, H), not normalized."""
        session = self._session
        if session is None:
            raise UsageError("the model was closed")
        is_long = batch.input_ids.size > _TOKENS_OF_ONE_THREAD
        if is_long and self.parallel > 1 and not shared:
            session = self._all_threads()
        try:
            if self._bound is not None and self._bound.fits(batch):
                with self._lock:
                    return self._bound.run(batch)
            return session.run([self._output], feeds(self._inputs, batch))[0]  # type: ignore[return-value]
        except (*ORT_ERRORS, RuntimeError) as err:  # the latter where inputs are bound
            said = first_line(err)
            # a token or a position without a row; what edgelm feeds is well formed by itself
            if isinstance(err, native.InvalidArgument):
                raise BundleError(
                    f"the model cannot take the tokens: {said}",
                    hint="the bundle's max_tokens or tokenizer does not fit its model",
                ) from err
            raise TargetUnavailable(f"ONNX Runtime failed: {said}") from err

    def close(self) -> None:
        with self._lock:
            self._session = self._wide = self._bound = None

    def _all_threads(self) -> ort.InferenceSession:
        with self._lock:
            if self._session is None:
                raise UsageError("the model was closed")
            if self._wide is None:
                self._check_unchanged()
                self._wide = self._open(self.parallel, self._placement)
                self._check_unchanged()
            return self._wide

    def _check_unchanged(self) -> None:
        """Raise TamperedError where the files are not those that were checked and opened."""
        with contextlib.suppress(OSError):
            if [identity(path.stat()) for path in self._files] == self._seen:
                return
        self._wide = None
        raise TamperedError(f"{self._path}: it was changed after it was opened")

    def _open_first(self, tried: tuple[Placement, ...]) -> tuple[ort.InferenceSession, Placement]:
        """A session at the first place where it starts. Raises TargetUnavailable, BundleError."""
        for place in tried:
            session, reason = self._start(place)
            if session is not None:
                return session, place
            if place is not tried[-1]:
                log.warning("no GPU is used, the CPU is: %s", reason)
                continue
            raise TargetUnavailable(
                f"device {place.device}: {reason}",
                hint=f"{INSTALL}; or use device cpu",
            )
        raise AssertionError("there is always one to try")

    def _start(self, place: Placement) -> tuple[ort.InferenceSession | None, str]:
        """The session, or None and why there is none there."""
        wanted = place.providers[0][0]
        if not place.on_gpu:
            return self._open(1, place), ""
        preload()
        try:
            session = self._open(1, place)
        except TargetUnavailable as err:
            return None, why_not(wanted) or err.message
        # ONNX Runtime leaves out what does not start, without an error.
        if session.get_providers()[0] == wanted:
            return session, ""
        return None, why_not(wanted) or "no GPU, or no driver for it; nvidia-smi tells"

    def _open(self, threads: int, place: Placement) -> ort.InferenceSession:
        ort.set_default_logger_severity(4)  # fatal only: errors arrive as exceptions
        options = _session_options(threads)
        if not place.on_gpu:
            options.add_session_config_entry(
                "optimization.disable_specified_optimizers", _SLOWER_FUSIONS
            )
        try:
            return ort.InferenceSession(
                self._path,
                sess_options=options,
                providers=list(place.providers),
                enable_fallback=0,  # which would print
            )
        except (*ORT_ERRORS, RuntimeError) as err:  # the latter where TensorRT is not installed
            if place.on_gpu and not isinstance(err, _BROKEN):
                raise TargetUnavailable(f"ONNX Runtime: {first_line(err)}") from err
            raise BundleError(
                f"{self._path}: ONNX Runtime cannot read it: {first_line(err)}"
            ) from err


def model_path(variant: Variant) -> str:
    paths = [f.path for f in variant.files if f.path.endswith(".onnx")]
    if len(paths) != 1:
        raise BundleError(f"variant {variant.name!r}: it needs one .onnx file, it has {len(paths)}")
    return paths[0]


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads that spin take the CPU from whatever else runs: with the machine busy, a
    # batch took 2.5 times as long as with sleeping threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def first_line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]
