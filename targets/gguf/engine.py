"""The session of classifiers and embedders: token batches through llama.cpp's C interface, fed with
ids only.

llama.cpp runs the sequences of one call as one long row of tokens, each masked from the others.
Matrices like long rows, attention does not: 256 tokens a call was fastest of 32 to 1,024 with short
texts (MiniLM, mean 15 tokens; 64 tokens reach 0.8 and 1,024 tokens 0.85 of its speed).

An encoder takes a text in one call and pools it in its graph. A decoder looks back only and may
take it in parts, which bounds the memory of a call; its hidden states are pooled here.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import BatchLimits, EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, InputError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import Task, Variant
from edgelm.targets.gguf import bindings, hidden
from edgelm.targets.gguf.buffers import Buffers, Row
from edgelm.targets.gguf.cores import physical_cores
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.head import Head, load_head
from edgelm.targets.gguf.loading import load_model, place
from edgelm.targets.gguf.plan import POOLING_TYPES
from edgelm.targets.gguf.rows import TokenRows
from edgelm.targets.gguf.shards import read_model, shard_names

TOKENS_A_CALL = 256
SEQUENCES_A_CALL = 32


@dataclass(frozen=True)
class Options:
    """The variant's options, checked."""

    pooling: str
    max_tokens: int
    head: str | None
    type_ids: bool


class GgufSession:
    """One model, one context, one caller at a time."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        task: Task,
        options: EngineOptions,
        watch: Any = None,
    ) -> None:
        """`watch`: llama.cpp's callback for each step of a computation."""
        self._lock = threading.Lock()
        self._owned = ExitStack()  # the model, then the context
        self._context: Any = None
        mine = read_options(variant)
        self._pooling = mine.pooling
        path = folder / model_file(variant)
        header = read_model(path)
        self._facts = read_facts(header, path)
        if not self._facts.is_encoder and mine.pooling not in ("mean", "last"):
            raise BundleError(f"{path}: a decoder, of which {mine.pooling!r} pooling is not known")
        self._max_tokens = min(mine.max_tokens, self._facts.context_length)
        self._head = self._load_head(folder, variant, mine)
        self._rows = TokenRows(path, header, self._facts.n_embd) if mine.type_ids else None
        self._library = bindings.load()
        self.device = device_for(self._library, options)
        self._budget = max(TOKENS_A_CALL, self._max_tokens)
        self._open(path, mine, options, watch)
        self._n_out = self._outputs(path, mine, task)
        self._buffers = Buffers(self._library, self._budget, self._facts.n_embd, mine.type_ids)
        self.limits = BatchLimits(max_sequences=256, max_tokens=max(8192, self._max_tokens))
        self.parallel = 1

    def run(self, batch: TokenBatch, *, shared: bool = False) -> NDArray[np.float32]:
        """Logits (B, C) for classification; pooled vectors (B, H), not normalized, otherwise."""
        self._check(batch)
        B = len(batch.lengths)
        pooled = np.empty((B, self._n_out), dtype=np.float32)
        with self._lock:
            if self._context is None:
                raise UsageError("the model was closed")
            start = 0
            while start < B:
                stop, n_tokens = start, 0
                while stop < B and stop - start < SEQUENCES_A_CALL:
                    n_tokens += int(batch.lengths[stop])
                    if stop > start and n_tokens > TOKENS_A_CALL:
                        break
                    stop += 1
                pooled[start:stop] = self._answer(batch, start, stop)
                start = stop
        return pooled if self._head is None else self._head(pooled)

    def close(self) -> None:
        """Free the context and the model; calling it twice is harmless."""
        with self._lock:
            self._context = None
            self._owned.close()

    def _open(self, path: Path, mine: Options, options: EngineOptions, watch: Any) -> None:
        library = self._library
        on_gpu = self.device != "cpu"
        model_params = library.llama_model_default_params()
        place(library, model_params, options.gpu_index, on_gpu=on_gpu)
        self._model = load_model(library, path, model_params)
        self._owned.callback(library.llama_model_free, self._model)
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self._budget
        params.n_seq_max = SEQUENCES_A_CALL
        params.kv_unified = True  # or the sequences would share the context's length out
        params.n_threads = params.n_threads_batch = options.threads or physical_cores()
        params.embeddings = True
        if not self._facts.is_encoder:
            params.n_batch = params.n_ubatch = hidden.TOKENS_A_CALL
            params.pooling_type = library.LLAMA_POOLING_TYPE_NONE
            params.attention_type = library.LLAMA_ATTENTION_TYPE_CAUSAL
            params.cb_eval = self._stop = hidden.stop_before_logits(library)
        else:
            params.pooling_type = POOLING_TYPES[mine.pooling]
            params.attention_type = library.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        # It skips what is masked, so several sequences in a call cost little; a GPU may lack it.
        params.flash_attn_type = (
            library.LLAMA_FLASH_ATTN_TYPE_AUTO if on_gpu else library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        )
        params.offload_kqv = params.op_offload = on_gpu
        params.no_perf = True
        if watch is not None:
            params.cb_eval = watch
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise TargetUnavailable(f"llama.cpp cannot open {path}: {bindings.last_errors()}")
        self._owned.callback(library.llama_free, self._context)
        if not self._facts.is_encoder:
            self._thread = hidden.OneThread()
            self._owned.callback(self._thread.close)
        # a session that is dropped unclosed; at the process's end the memory goes anyway
        weakref.finalize(self, self._owned.close).atexit = False

    def _outputs(self, path: Path, mine: Options, task: Task) -> int:
        """Values that llama.cpp gives for one sequence, checked against the task."""
        n = self._facts.n_embd
        if mine.pooling == "rank":
            n = int(self._library.llama_model_n_cls_out(self._model))
        elif self._library.llama_model_n_embd_out(self._model) != n:
            self.close()
            raise BundleError(f"{path}: its vectors are not {n} wide")
        final = n if self._head is None else len(self._head.out_bias)
        if task.kind == "text-classification" and final != len(task.labels):
            self.close()
            raise BundleError(f"{path}: {final} outputs for {len(task.labels)} labels")
        return n

    def _load_head(self, folder: Path, variant: Variant, mine: Options) -> Head | None:
        if mine.head is None:
            return None
        return load_head(folder / file_ending(variant, mine.head), self._facts.n_embd)

    def _check(self, batch: TokenBatch) -> None:
        # llama.cpp ends the process on positions beyond the table
        longest = int(batch.lengths.max(initial=0))
        if longest > min(self._max_tokens, batch.input_ids.shape[1]):
            raise InputError(f"{longest} tokens, the model takes {self._max_tokens}")
        if int(batch.lengths.min(initial=1)) < 1:
            raise InputError("a sequence without tokens")
        ids = batch.input_ids
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._facts.n_vocab:
            raise InputError(f"a token id outside 0 to {self._facts.n_vocab - 1}")

    def _answer(self, batch: TokenBatch, start: int, stop: int) -> NDArray[np.float32]:
        """Rows (stop - start, n_out) of the batch's sequences from start to stop."""
        lengths = batch.lengths[start:stop]
        real = np.arange(batch.input_ids.shape[1]) < lengths[:, None]  # (n, T)
        ids = batch.input_ids[start:stop][real]
        if not self._facts.is_encoder:
            return hidden.pool(self._hidden_states(ids, lengths), lengths, self._pooling)
        vectors = None
        if self._rows is not None and batch.type_ids[start:stop].any():
            vectors = self._rows.gather(ids, batch.type_ids[start:stop][real])
        return self._encode(ids, lengths, vectors)

    def _encode(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        vectors: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """What an encoder's graph gives for each sequence."""
        library, context = self._library, self._context
        row = Row.of(lengths)
        bindings.require(library.llama_encode(context, self._buffers.fill(ids, row, vectors)))
        found = np.empty((len(lengths), self._n_out), np.float32)
        for i in range(len(lengths)):
            values = library.llama_get_embeddings_seq(context, i)
            if not values:
                raise TargetUnavailable(f"llama.cpp gave no result: {bindings.last_errors()}")
            found[i] = np.ctypeslib.as_array(values, shape=(self._n_out,))
        return found

    def _hidden_states(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """A decoder's last hidden states (n, H) of all tokens, one sequence behind another."""
        row = Row.of(lengths)
        states = np.empty((len(ids), self._n_out), np.float32)
        for at in range(0, len(ids), hidden.TOKENS_A_CALL):
            part = slice(at, at + hidden.TOKENS_A_CALL)
            call = partial(hidden.decode, self._library, self._context, self._buffers)
            states[part] = self._thread(partial(call, ids[part], row[part], begins=at == 0))
        return states


def read_options(variant: Variant) -> Options:
    """The options `lower` gave. Raises BundleError."""
    o = variant.options
    pooling, max_tokens, head = o.get("pooling"), o.get("max_tokens"), o.get("head")
    known = (
        pooling in POOLING_TYPES
        and isinstance(max_tokens, int)
        and 1 <= max_tokens <= 2**20
        and (head is None or isinstance(head, str))
    )
    if not known:
        raise BundleError(f"variant {variant.name}: its options {o!r} are not the gguf target's")
    return Options(str(pooling), int(max_tokens or 0), head, o.get("type_ids") is True)


def file_ending(variant: Variant, ending: str) -> str:
    found = [f.path for f in variant.files if f.path.endswith(ending)]
    if len(found) != 1:
        raise BundleError(f"variant {variant.name}: it lists {len(found)} files ending in {ending}")
    return found[0]


def model_file(variant: Variant) -> str:
    """The .gguf file; of a set, all of which the variant lists, the first. Raises BundleError."""
    found = sorted(f.path for f in variant.files if f.path.endswith(".gguf"))
    try:
        whole = shard_names(found[0]) if found else []
    except ValueError as err:
        raise BundleError(f"variant {variant.name}: {err}") from err
    if not found or found != whole:
        raise BundleError(f"variant {variant.name}: it lists {len(found)} .gguf files, not a set")
    return found[0]


def has_cuda(library: Any) -> bool:
    """Whether the library has a CUDA backend with a device; offload alone may mean Metal."""
    offload = bool(library.llama_supports_gpu_offload())
    return offload and b"CUDA" in library.llama_print_system_info()


def device_for(library: Any, options: EngineOptions) -> str:
    """The CPU unless CUDA is asked for by name."""
    if options.kind in ("auto", "cpu"):
        return "cpu"
    reason = absent(library).get(options.kind)
    if reason is not None:
        what, _, hint = reason.partition("; ")
        raise TargetUnavailable(what, hint=hint)
    return options.device


def absent(library: Any) -> dict[str, str]:
    """Devices that the library cannot use -> the reason and the cure."""
    found = {"tensorrt": "llama.cpp does not use TensorRT; ask for cuda"}
    if not has_cuda(library):
        build = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python'
        found["cuda"] = f"llama.cpp was built without CUDA; build it with it: {build}"
    return found
