"""The decoder session: sequences that grow, through llama.cpp's C interface, fed with ids only.

Each slot is a sequence of llama.cpp's with a part of the key-value memory to itself. A fork is a
context of its own over the same weights.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import Chunk, DecoderOptions
from edgelm.runtime.errors import BundleError, InputError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import TextLimits, Variant
from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.check import Header
from edgelm.targets.gguf.cores import physical_cores
from edgelm.targets.gguf.engine import device_for, model_file
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.loading import load_model, place
from edgelm.targets.gguf.shards import read_model

BATCH_TOKENS = 2048  # in one call of llama_decode
UBATCH_TOKENS = 512  # that it computes at once
# llama.cpp's CPU kernels give each of several tokens the bits of a token alone: of 11 where all
# weights are q8_0, of 6 for most other types, of none for these (ggml's numbers). Rows are
# multiplied by fours, so 4 and 8 tokens are the cheapest.
_F32, _F16, _Q8_0, _IQ4_NL, _BF16 = 0, 1, 8, 20, 30
_ROUND_OTHERWISE = {_F32, _F16, _IQ4_NL, _BF16}
_LAID_OUT_OTHERWISE = {10, 12}  # q2_k, q4_k
N_GUESS, N_GUESS_Q8_0 = 3, 7
_PADDING = 256  # llama.cpp rounds a sequence's memory up to this


class GgufDecoder:
    """A model, and a context of `n_slots` sequences."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        text: TextLimits,
        options: DecoderOptions,
        watch: Any = None,
    ) -> None:
        """`watch`: llama.cpp's callback for each step of a computation."""
        path = folder / model_file(variant)
        header = read_model(path)
        facts = read_facts(header, path)
        if facts.is_encoder:
            raise BundleError(f"{path}: it is an encoder, which generates no text")
        self._library = bindings.load()
        self._watch = watch
        self.device = device_for(self._library, options)
        self.n_guess = _n_guess(header, self.device) if options.guesses else 0
        self._options = options
        self._path = path
        self.n_vocab = facts.n_vocab
        if (options.context_tokens or 0) > facts.context_length:
            raise UsageError(
                f"context_tokens: {options.context_tokens} is more than the "
                f"{facts.context_length} tokens that the model can hold"
            )
        wanted = options.context_tokens or min(text.max_tokens, facts.context_length)
        self._owned = ExitStack()
        params = self._library.llama_model_default_params()
        place(self._library, params, options.gpu_index, on_gpu=self.device != "cpu")
        # weights laid out for several tokens at once: some types are rounded otherwise then
        params.use_extra_bufts = not (options.guesses and _types(header) & _LAID_OUT_OTHERWISE)
        model = load_model(self._library, path, params)
        self._owned.callback(self._library.llama_model_free, model)
        self._model = model
        self._check_model()
        self._open(options.n_slots, wanted)

    def _check_model(self) -> None:
        """What is relied on must be what llama.cpp found, in graphs that edgelm does not write."""
        library, model = self._library, self._model
        n_vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        if n_vocab != self.n_vocab:
            self._owned.close()
            raise BundleError(f"{self._path}: {n_vocab} tokens, its table has {self.n_vocab} rows")
        if library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model):
            self._owned.close()
            raise BundleError(f"{self._path}: a recurrent model, whose texts cannot be cut")

    def _open(self, n_slots: int, context_tokens: int) -> None:
        """A context over `self._model`; its end is left to `self._owned`."""
        library, on_gpu = self._library, self.device != "cpu"
        self.n_slots, self.context_tokens = n_slots, context_tokens
        self._lengths = [0] * n_slots
        per_slot = -(-context_tokens // _PADDING) * _PADDING
        self._n_batch = min(BATCH_TOKENS, per_slot * n_slots)
        params = library.llama_context_default_params()
        params.n_ctx = per_slot * n_slots
        params.n_batch = self._n_batch
        params.n_ubatch = min(UBATCH_TOKENS, self._n_batch)
        params.n_seq_max = n_slots
        params.kv_unified = False  # each sequence looks at its own part only
        params.swa_full = True  # or a forgotten end could not be taken back
        params.n_threads = params.n_threads_batch = self._options.threads or physical_cores()
        params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_AUTO
        if self._options.guesses:
            # Over keys and values of one type llama.cpp sums the attention of a single token in
            # parts; over two types always in one way.
            params.type_v = _BF16
        params.offload_kqv = params.op_offload = on_gpu
        params.no_perf = True
        if self._watch is not None:
            params.cb_eval = self._watch
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            self._owned.close()
            raise TargetUnavailable(
                f"llama.cpp cannot open {self._path} for {n_slots} x {context_tokens} tokens: "
                f"{bindings.last_errors()}",
                hint="a shorter context needs less memory",
            )
        self._owned.callback(library.llama_free, self._context)
        self._memory = library.llama_get_memory(self._context)
        self._batch = _Batch(library, self._n_batch)
        # the address as a number: making a pointer object of it costs more than the call
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        self._address_of_logits = ctypes.cast(library.llama_get_logits, kind)
        self._place = (0, 0)  # address and number of the logits that `_rows` shows
        self._rows = np.empty((0, self.n_vocab), np.float32)
        self._busy = threading.Lock()
        self._forks: weakref.WeakSet[GgufDecoder] = weakref.WeakSet()
        # a session that is dropped unclosed; at the process's end the memory goes anyway
        weakref.finalize(self, self._owned.close).atexit = False

    def fork(self, n_slots: int, context_tokens: int) -> GgufDecoder:
        """A context of its own over the same weights."""
        if self._context is None:
            raise UsageError("the model was closed")
        made = object.__new__(GgufDecoder)
        made._library, made._model, made._path = self._library, self._model, self._path
        made.device, made._options, made.n_vocab = self.device, self._options, self.n_vocab
        made.n_guess, made._watch = self.n_guess, self._watch
        made._parent = self  # the weights live as long as their forks
        made._owned = ExitStack()
        made._open(n_slots, context_tokens)
        self._forks.add(made)
        return made

    _parent: GgufDecoder | None = None

    def extend(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Append; logits (sum of n_logits, V), valid until the next call."""
        with self._busy:
            if self._context is None:
                raise UsageError("the model was closed")
            self._check(chunks)
            calls = _calls(chunks, self._lengths, self._n_batch)
            if len(calls) == 1:
                return self._decode(calls[0])
            # the next call writes where the last one's logits are
            return np.concatenate([self._decode(call).copy() for call in calls])

    def append(self, slot: int, token_id: int) -> NDArray[np.float32]:
        """One token more; logits (1, V), valid until the next call."""
        # A token's pass leaves nothing of Python in the processor's caches, so each function that
        # is passed through counts: this way took half as long as that of `extend`.
        with self._busy:
            fits = 0 <= slot < self.n_slots and self._lengths[slot] < self.context_tokens
            if self._context is None or not fits or not 0 <= token_id < self.n_vocab:
                self._refuse(slot, token_id)
            start = self._lengths[slot]
            self._batch.fill_one(slot, token_id, start)
            try:
                status = self._library.llama_decode(self._context, self._batch.batch)
                if status == 0:
                    self._lengths[slot] = start + 1
            finally:
                if self._lengths[slot] == start:
                    self._forget(slot, start)
            if status != 0:
                raise self._failed(status)
            return self._logits(1)

    def length(self, slot: int) -> int:
        """Tokens that the sequence holds."""
        return self._lengths[slot]

    def truncate(self, slot: int, n_tokens: int) -> None:
        """Forget all but the first `n_tokens`."""
        if n_tokens >= self._lengths[slot]:
            return
        with self._busy:
            if self._context is None:
                raise UsageError("the model was closed")
            self._forget(slot, n_tokens)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source`, and nothing else."""
        assert source != target and n_tokens <= self._lengths[source]
        with self._busy:
            if self._context is None:
                raise UsageError("the model was closed")
            self._forget(target, 0)
            # between sequences with memories of their own llama.cpp copies whole ones
            self._library.llama_memory_seq_cp(self._memory, source, target, 0, -1)
            self._lengths[target] = self._lengths[source]
            self._forget(target, n_tokens)

    def close(self) -> None:
        """Free the context and its forks, and the model unless this is a fork."""
        for fork in list(self._forks):
            fork.close()
        with self._busy:
            self._context = None
            self._owned.close()

    def _forget(self, slot: int, n_tokens: int) -> None:
        if not self._library.llama_memory_seq_rm(self._memory, slot, n_tokens, -1):
            raise TargetUnavailable(f"llama.cpp cannot shorten a sequence of {self._path}")
        self._lengths[slot] = min(n_tokens, self._lengths[slot])

    def _check(self, chunks: Sequence[Chunk]) -> None:
        # llama.cpp ends the process on some of these
        for chunk in chunks:
            n, ids = len(chunk.ids), chunk.ids
            if not (0 <= chunk.slot < self.n_slots and 0 <= chunk.n_logits <= n and n > 0):
                raise UsageError(f"slot {chunk.slot}, {n} tokens, {chunk.n_logits} logits")
            if self._lengths[chunk.slot] + n > self.context_tokens:
                raise InputError(
                    f"{self._lengths[chunk.slot] + n} tokens, the context holds "
                    f"{self.context_tokens}"
                )
            # one id is compared by itself: a token's time is what an answer's speed is made of
            low, high = (ids[0], ids[0]) if n == 1 else (ids.min(), ids.max())
            if not 0 <= low <= high < self.n_vocab:
                raise InputError(f"a token id outside 0 to {self.n_vocab - 1}")
        if len(chunks) > 1 and len({chunk.slot for chunk in chunks}) < len(chunks):
            raise UsageError("a slot stands in two chunks")

    def _decode(self, call: list[tuple[Chunk, int]]) -> NDArray[np.float32]:
        """One call's logits (n, V), in llama.cpp's memory."""
        library = self._library
        n_rows = self._batch.fill(call)
        status = -1
        try:
            status = library.llama_decode(self._context, self._batch.batch)
            if status == 0:
                for chunk, start in call:
                    self._lengths[chunk.slot] = start + len(chunk.ids)
        finally:  # an interrupt may come between the call and our note of it
            if any(self._lengths[c.slot] != start + len(c.ids) for c, start in call):
                for chunk, start in call:  # what it took of them is not told
                    self._forget(chunk.slot, start)
        if status != 0:
            raise self._failed(status)
        return self._logits(n_rows) if n_rows else np.empty((0, self.n_vocab), np.float32)

    def _failed(self, status: int) -> TargetUnavailable:
        return TargetUnavailable(f"llama.cpp failed ({status}): {bindings.last_errors()}")

    def _refuse(self, slot: int, token_id: int) -> NoReturn:
        """Say why this token cannot be appended."""
        if self._context is None:
            raise UsageError("the model was closed")
        self._check([Chunk(slot, np.array([token_id], np.int32))])
        raise AssertionError("nothing is wrong with it")

    def _logits(self, n_rows: int) -> NDArray[np.float32]:
        """Those of the last call (n_rows, V), in llama.cpp's memory."""
        place = (self._address_of_logits(self._context), n_rows)
        if place != self._place:
            self._place = place
            rows = ctypes.cast(place[0], ctypes.POINTER(ctypes.c_float))
            self._rows = np.ctypeslib.as_array(rows, shape=(n_rows, self.n_vocab))
        return self._rows


def _types(header: Header) -> set[int]:
    """Of the matrices."""
    return {tensor.type for tensor in header.tensors.values() if len(tensor.shape) > 1}


def _n_guess(header: Header, device: str) -> int:
    """Raises UsageError where several tokens are not rounded like one."""
    types = _types(header)
    if device == "cpu" and not types & _ROUND_OTHERWISE:
        return N_GUESS_Q8_0 if types == {_Q8_0} else N_GUESS
    raise UsageError(
        "speculate: these weights, or this device, round guessed tokens otherwise than plain ones",
        hint="load a quantized variant, iq4_nl left aside, with device='cpu'",
    )


def _calls(
    chunks: Sequence[Chunk], lengths: Sequence[int], n_batch: int
) -> list[list[tuple[Chunk, int]]]:
    """The chunks with their starting positions, cut into calls of at most `n_batch` tokens."""
    if sum(len(chunk.ids) for chunk in chunks) <= n_batch:
        return [[(chunk, lengths[chunk.slot]) for chunk in chunks]]
    calls: list[list[tuple[Chunk, int]]] = [[]]
    room = n_batch
    for chunk in chunks:
        done, n = 0, len(chunk.ids)
        while done < n:
            if room == 0:
                calls.append([])
                room = n_batch
            take = min(room, n - done)
            wanted = max(0, min(take, chunk.n_logits - (n - done - take)))
            part = Chunk(chunk.slot, chunk.ids[done : done + take], wanted)
            calls[-1].append((part, lengths[chunk.slot] + done))
            done += take
            room -= take
    return calls


class _Batch:
    """The arrays behind a llama_batch, made once."""

    def __init__(self, library: Any, n: int) -> None:
        self._ids = np.zeros(n, dtype=np.int32)
        self._positions = np.zeros(n, dtype=np.int32)
        self._slots = np.zeros(n, dtype=np.int32)
        self._ones = np.ones(n, dtype=np.int32)
        self._wanted = np.zeros(n, dtype=np.int8)
        address = self._slots.ctypes.data
        self._pointers = np.arange(address, address + 4 * n, 4, dtype=np.uintp)
        kinds = {name: kind for name, kind in library.llama_batch._fields_}
        self.batch = library.llama_batch()
        for name, array in (
            ("token", self._ids),
            ("pos", self._positions),
            ("n_seq_id", self._ones),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            setattr(self.batch, name, ctypes.cast(array.ctypes.data, kinds[name]))
        self.batch.embd = None

    def fill_one(self, slot: int, token_id: int, position: int) -> None:
        """Put one token in, whose logits are wanted."""
        self._ids[0], self._positions[0], self._slots[0] = token_id, position, slot
        self._wanted[0] = self.batch.n_tokens = 1

    def fill(self, call: list[tuple[Chunk, int]]) -> int:
        """Put the chunks in; the number of rows of logits that they ask for."""
        at = n_rows = 0
        for chunk, start in call:
            n = len(chunk.ids)
            end = at + n
            if n == 1:
                self._ids[at], self._positions[at] = chunk.ids[0], start
                self._slots[at], self._wanted[at] = chunk.slot, chunk.n_logits
            else:
                self._ids[at:end] = chunk.ids
                self._positions[at:end] = np.arange(start, start + n)
                self._slots[at:end] = chunk.slot
                self._wanted[at:end] = 0
                self._wanted[end - chunk.n_logits : end] = 1
            n_rows += chunk.n_logits
            at = end
        self.batch.n_tokens = at
        return n_rows
