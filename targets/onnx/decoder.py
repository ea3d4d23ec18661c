"""The run-time half of decoders: sequences in buffers of keys and values that grow in place.

Each cache is one array (S, K, C, D), bound as input and as output of the same operator, which
then writes new tokens behind the old ones and copies nothing. A sequence is a row of it, so
forgetting its end is bookkeeping, and rows that lie side by side are one batch.

Letters: S sequences, C tokens of context, K heads of keys and values, D their size, B rows of a
batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgelm.runtime import huge_pages
from edgelm.runtime.cores import usable_cores
from edgelm.runtime.engine import GPU_DEVICES, Chunk, DecoderOptions
from edgelm.runtime.errors import BundleError, InputError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import TextLimits, Variant
from edgelm.targets.onnx.check import check_model
from edgelm.targets.onnx.engine import ORT_ERRORS, first_line, model_path
from edgelm.targets.onnx.genai_config import FILE_NAME, LOGITS_FROM, DecoderShape, read_shape
from edgelm.targets.onnx.providers import CPU

# A prompt is processed in pieces of this many tokens, so that activations stay bounded.
TOKENS_A_CALL = 256
# Rows between two that are to be extended run a token that nobody asked for, at most so many: in a
# batch one costs 0.4 x a pass (SmolLM2-135M int4: 9.8 ms alone, 11.9 two, 16.1 three, 19.7 four).
MAX_GAP = 2
# A token passes some 300 operators that threads share. Threads that sleep between two of them wake
# late, threads that spin for long (ONNX Runtime's default) take the CPU from all else: with the
# machine busy a token took 1.6 times as long as with sleeping threads. These do both.
SPIN_US = 20

RUN_ERRORS = (*ORT_ERRORS, RuntimeError)  # the latter of runs with bound inputs

_LAST = np.array([-1], np.int64)  # logits of the last token alone
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class _Single(NamedTuple):
    """What a pass over one token of a sequence is bound to, but for its mask."""

    bound: ort.IOBinding
    ids: NDArray[np.int64]  # (1, 1)
    logits: NDArray[np.float32]  # (1, V)


class OnnxDecoder:
    """An opened decoder; see `edgelm.runtime.engine.DecoderSession`."""

    device = "cpu"
    n_guess = 0  # several tokens are rounded otherwise than one

    def __init__(
        self, folder: Path, variant: Variant, text: TextLimits, options: DecoderOptions
    ) -> None:
        if options.kind in GPU_DEVICES:
            raise TargetUnavailable(
                "ONNX decoders run on CPUs only", hint="use a gguf variant on the GPU"
            )
        self._path = path = folder / model_path(variant)
        check_model(folder, model_path(variant), variant)
        self._shape = shape = read_shape(path.parent / FILE_NAME, path.name)
        self.n_vocab = shape.n_vocab
        session = _open(path, options.threads or usable_cores())
        self._dtype = _check(session, shape, path)
        self._hold(session, options.n_slots, options.context_tokens or text.max_tokens)

    def fork(self, n_slots: int, context_tokens: int) -> OnnxDecoder:
        """Buffers of their own over the same session."""
        if self._session is None:
            raise UsageError("the model was closed")
        made = object.__new__(OnnxDecoder)
        made._path, made._shape, made._dtype = self._path, self._shape, self._dtype
        made.n_vocab = self.n_vocab
        made._hold(self._session, n_slots, context_tokens)
        return made

    def _hold(self, session: ort.InferenceSession, n_slots: int, context_tokens: int) -> None:
        """Make the buffers."""
        shape, path, dtype = self._shape, self._path, self._dtype
        self.n_slots, self.context_tokens = n_slots, context_tokens
        if context_tokens > shape.context_tokens:
            raise UsageError(
                f"context_tokens: {context_tokens} is more than the {shape.context_tokens} "
                "tokens that the model can hold"
            )
        size = (self.n_slots, shape.n_kv_heads, self.context_tokens, shape.head_size)
        try:  # pages are the system's until something is written to them
            self._caches = {names: np.zeros(size, dtype) for names in shape.caches}
            self._ones = np.ones((1, self.context_tokens), np.int64)
            self._ones_address = self._ones.ctypes.data
            self._batch_logits = np.empty((self.n_slots, self.n_vocab), np.float32)
        except (MemoryError, ValueError) as err:
            raise TargetUnavailable(
                f"{path}: no memory for {self.n_slots} sequences of {self.context_tokens} tokens",
                hint="open it with a smaller context_tokens or n_slots",
            ) from err
        self._logits = np.empty((0, self.n_vocab), np.float32)
        self._lengths = [0] * self.n_slots
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._singles: dict[int, _Single] = {}
        self._session: ort.InferenceSession | None = session

    def extend(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Append each chunk; logits (sum of n_logits, V), valid until the next call."""
        if self._session is None:
            raise UsageError("the model was closed")
        self._check_chunks(chunks)
        n = sum(chunk.n_logits for chunk in chunks)
        if len(self._logits) < n:
            self._logits = np.empty((n, self.n_vocab), np.float32)
        lengths = list(self._lengths)
        steps: list[tuple[Chunk, int]] = []
        row = 0
        try:
            for chunk in chunks:
                if len(chunk.ids) == 1:
                    steps.append((chunk, row))
                else:
                    self._run_chunk(self._session, chunk, row, lengths)
                row += chunk.n_logits
            for group in self._groups(steps, lengths):
                self._run_steps(self._session, group, lengths)
        except RUN_ERRORS as err:
            raise _failed(err) from err
        self._lengths = lengths
        return self._logits[:n]

    def append(self, slot: int, token_id: int) -> NDArray[np.float32]:
        """One token more; logits (1, V), valid until the next call."""
        # The way of `extend` took 0.2 ms, a thirtieth of a small model's pass.
        session = self._session
        fits = 0 <= slot < self.n_slots and self._lengths[slot] < self.context_tokens
        if session is None or not fits or not 0 <= token_id < self.n_vocab:
            return self.extend([Chunk(slot, np.array([token_id], np.int32))])  # which says why
        single = self._singles.get(slot)
        if single is None:
            single = self._singles[slot] = self._single(session, slot)
        single.ids[0, 0] = token_id
        total = self._lengths[slot] + 1
        single.bound.bind_input(
            "attention_mask", "cpu", 0, np.int64, (1, total), self._ones_address
        )
        try:
            session.run_with_iobinding(single.bound)
        except RUN_ERRORS as err:
            raise _failed(err) from err
        self._lengths[slot] = total
        return single.logits

    def _single(self, session: ort.InferenceSession, slot: int) -> _Single:
        bound = self._bound(session, slot, 1)
        ids, logits = np.zeros((1, 1), np.int64), np.empty((1, self.n_vocab), np.float32)
        _bind_input(bound, "input_ids", ids)
        _bind_input(bound, LOGITS_FROM, _LAST)
        shape = (1, 1, self.n_vocab)
        bound.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
        return _Single(bound, ids, logits)

    def length(self, slot: int) -> int:
        """Tokens that the sequence holds."""
        self._check_slot(slot)
        return self._lengths[slot]

    def truncate(self, slot: int, n_tokens: int) -> None:
        """Forget all but the first `n_tokens`."""
        self._check_slot(slot)
        self._check_held(slot, n_tokens)
        self._lengths[slot] = n_tokens

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source`, and nothing else."""
        self._check_slot(source)
        self._check_slot(target)
        self._check_held(source, n_tokens)
        if source != target:
            for cache in self._caches.values():
                cache[target, :, :n_tokens] = cache[source, :, :n_tokens]
        self._lengths[target] = n_tokens

    def close(self) -> None:
        """Free the session and the buffers."""
        self._bindings.clear()
        self._singles.clear()
        self._session = None
        self._caches = {}
        self._logits = self._batch_logits = np.empty((0, self.n_vocab), np.float32)

    def _run_chunk(
        self, session: ort.InferenceSession, chunk: Chunk, row: int, lengths: list[int]
    ) -> None:
        """One sequence's tokens, in pieces; their logits from `row` on."""
        n = len(chunk.ids)
        for begin in range(0, n, TOKENS_A_CALL):
            end = min(n, begin + TOKENS_A_CALL)
            wanted = max(0, end - max(begin, n - chunk.n_logits))
            ids = chunk.ids[None, begin:end].astype(np.int64)
            total = lengths[chunk.slot] + end - begin
            logits = self._logits[row:] if wanted else self._batch_logits
            mask = self._ones[:, :total]
            self._run(session, chunk.slot, ids, mask, max(1, wanted), logits)
            lengths[chunk.slot] = total
            row += wanted

    def _run_steps(
        self, session: ort.InferenceSession, steps: list[tuple[Chunk, int]], lengths: list[int]
    ) -> None:
        """One token each of sequences that lie side by side.

        One in a gap gets a token too, but does not grow: what lies behind its end is not read."""
        if len(steps) == 1:
            self._run_chunk(session, *steps[0], lengths)
            return
        first, last = steps[0][0].slot, steps[-1][0].slot
        ids = np.zeros((last - first + 1, 1), np.int64)
        for chunk, _ in steps:
            ids[chunk.slot - first] = chunk.ids
        totals = np.array(lengths[first : last + 1]) + 1
        mask = (np.arange(totals.max()) < totals[:, None]).astype(np.int64)
        self._run(session, first, ids, mask, 1, self._batch_logits)
        for chunk, row in steps:
            lengths[chunk.slot] += 1
            if chunk.n_logits:
                self._logits[row] = self._batch_logits[chunk.slot - first]

    def _groups(
        self, steps: list[tuple[Chunk, int]], lengths: list[int]
    ) -> Iterator[list[tuple[Chunk, int]]]:
        """Steps of slots side by side; a slot in a gap needs room for one token more."""
        group: list[tuple[Chunk, int]] = []
        for step in sorted(steps, key=lambda step: step[0].slot):
            if group:
                gap = range(group[-1][0].slot + 1, step[0].slot)
                if len(gap) > MAX_GAP or any(lengths[s] >= self.context_tokens for s in gap):
                    yield group
                    group = []
            group.append(step)
        if group:
            yield group

    def _run(
        self,
        session: ort.InferenceSession,
        first: int,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        n_logits: int,
        logits: NDArray[np.float32],
    ) -> None:
        """One pass over ids (B, T) of the slots from `first` on, mask (B, longest of them then);
        the logits of each one's last `n_logits` tokens are written into `logits`."""
        B, _ = ids.shape
        bound = self._binding(session, first, B)
        start = np.array([-n_logits], np.int64)
        _bind_input(bound, "input_ids", ids)
        _bind_input(bound, "attention_mask", mask)
        _bind_input(bound, LOGITS_FROM, start)
        shape = (B, n_logits, self.n_vocab)
        bound.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
        session.run_with_iobinding(bound)

    def _binding(self, session: ort.InferenceSession, first: int, B: int) -> ort.IOBinding:
        """With the caches of these rows bound as past and as present."""
        found = self._bindings.get((first, B))
        if found is None:
            found = self._bindings[first, B] = self._bound(session, first, B)
        return found

    def _bound(self, session: ort.InferenceSession, first: int, B: int) -> ort.IOBinding:
        made = session.io_binding()
        for (past, present), cache in self._caches.items():
            rows = cache[first : first + B]
            _bind_input(made, past, rows)
            made.bind_output(present, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
        return made

    def _check_chunks(self, chunks: Sequence[Chunk]) -> None:
        seen: set[int] = set()
        for chunk in chunks:
            self._check_slot(chunk.slot)
            n = len(chunk.ids)
            if chunk.slot in seen:
                raise UsageError(f"slot {chunk.slot} stands in two chunks")
            seen.add(chunk.slot)
            if not 0 <= chunk.n_logits <= n or n == 0:
                raise UsageError(f"n_logits: {chunk.n_logits} of {n} tokens")
            low, high = int(chunk.ids.min()), int(chunk.ids.max())
            if low < 0 or high >= self.n_vocab:
                wrong = low if low < 0 else high
                raise InputError(f"token id {wrong} is not in 0 to {self.n_vocab - 1}")
            total = self._lengths[chunk.slot] + n
            if total > self.context_tokens:
                raise InputError(
                    f"{total} tokens are more than the context of {self.context_tokens} holds"
                )

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.n_slots:
            raise UsageError(f"slot {slot} is not in 0 to {self.n_slots - 1}")

    def _check_held(self, slot: int, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._lengths[slot]:
            raise UsageError(f"slot {slot} holds {self._lengths[slot]} tokens, not {n_tokens}")


def _bind_input(bound: ort.IOBinding, name: str, array: NDArray[np.generic]) -> None:
    """`array`, in one piece, must outlive the run."""
    bound.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _failed(err: Exception) -> TargetUnavailable:
    return TargetUnavailable(f"ONNX Runtime failed: {first_line(err)}")


def _open(path: Path, threads: int) -> ort.InferenceSession:
    ort.set_default_logger_severity(4)  # fatal only: errors arrive as exceptions
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    growth = huge_pages.Growth()
    try:
        session = ort.InferenceSession(path, sess_options=options, providers=[CPU])
    except ORT_ERRORS as err:
        raise BundleError(f"{path}: ONNX Runtime cannot read it: {first_line(err)}") from err
    # Beside the first prompt: done before, it would put off the first token.
    Thread(target=huge_pages.collapse, args=[growth.regions()], daemon=True).start()
    return session


def _check(session: ort.InferenceSession, shape: DecoderShape, path: Path) -> type[np.generic]:
    """The type of the caches. Raises BundleError for a file that edgelm did not write."""
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name: o for o in session.get_outputs()}
    past = {name for name, _ in shape.caches}
    present = {name for _, name in shape.caches}
    wrong = inputs.keys() ^ (past | {"input_ids", "attention_mask"})
    wrong |= outputs.keys() ^ (present | {"logits"})
    wrong |= {i.name for i in session.get_overridable_initializers()} ^ {LOGITS_FROM}
    if wrong:
        raise BundleError(f"{path}: not a file that edgelm wrote: {sorted(wrong)[0]!r}")
    values = [inputs[name] for name in past] + [outputs[name] for name in present]
    types = {value.type for value in values}
    heads = {value.shape[1] for value in values if len(value.shape) == 4}
    if len(types) != 1 or not types <= _TYPES.keys() or heads != {shape.n_kv_heads}:
        raise BundleError(f"{path}: caches of {sorted(types)} with {heads} heads")
    if outputs["logits"].type != "tensor(float)" or outputs["logits"].shape[-1] != shape.n_vocab:
        raise BundleError(f"{path}: its logits are not {shape.n_vocab} float32 numbers a token")
    return _TYPES[types.pop()]
