"""What an engine is to the runtime: tokens in, float32 rows out; it knows nothing of text.

`Session` answers whole texts at once (classification, embeddings); `DecoderSession` holds sequences
that grow (generation).

Letters: B sequences in a batch, T tokens of the longest, C classes, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgelm.runtime.errors import UsageError

if TYPE_CHECKING:  # the command line reads DEVICES without loading numpy
    import numpy as np
    from numpy.typing import NDArray

Device = str  # one of DEVICES; a GPU's with its number, where there are several: cuda:1
DEVICES = ("auto", "cpu", "cuda", "tensorrt")  # tensorrt: ONNX Runtime's, on an NVIDIA GPU
GPU_DEVICES = ("cuda", "tensorrt")


def split_device(device: Device) -> tuple[str, int | None]:
    """`cuda:1` -> cuda and 1; None where no number is given. Raises UsageError."""
    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and kind not in GPU_DEVICES):
        raise UsageError(
            f"device: {device!r} is none of {', '.join(DEVICES)}",
            hint="a GPU of several is chosen by its number: cuda:1",
        )
    if colon and not (number.isascii() and number.isdecimal() and len(number) < 4):
        raise UsageError(f"device: {device!r}: no number of a GPU", hint=f"write {kind}:1")
    return kind, int(number) if colon else None


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded on the right to one length."""

    input_ids: NDArray[np.int32]  # (B, T), padded with the tokenizer's pad id
    lengths: NDArray[np.int32]  # (B,), real tokens in each row, >= 1
    type_ids: NDArray[np.int32]  # (B, T), 0 for the first text, 1 for the second; 0 in the padding

    def __post_init__(self) -> None:
        B, T = self.input_ids.shape
        assert self.lengths.shape == (B,) and self.type_ids.shape == (B, T)

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding left out."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class BatchLimits:
    """The batch shapes an engine is fastest with."""

    max_sequences: int = 64
    max_tokens: int = 8192  # B x T, padding included


@dataclass(frozen=True)
class EngineOptions:
    """How to open an engine. `threads` None means all cores the process may use."""

    device: Device = "auto"
    threads: int | None = None

    @property
    def kind(self) -> str:
        """The device without a GPU's number."""
        return split_device(self.device)[0]

    @property
    def gpu_index(self) -> int | None:
        """The number of the GPU that is asked for."""
        return split_device(self.device)[1]

    def __post_init__(self) -> None:
        split_device(self.device)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads: {self.threads!r} must be at least 1")


class Session(Protocol):
    """An opened variant. `run` may be called from many threads at once."""

    limits: BatchLimits
    parallel: int  # batches that are best run at once, each on a thread of its own; 1 or more
    device: str

    def run(self, batch: TokenBatch, *, shared: bool = False) -> NDArray[np.float32]:
        """Logits (B, C); for embeddings pooled vectors (B, H), not normalized.

        shared: `parallel` batches run at once, so this one has a share of the threads."""
        ...

    def close(self) -> None:
        """Free the engine's memory; calling it twice is harmless."""
        ...


@dataclass(frozen=True)
class DecoderOptions(EngineOptions):
    """How to open a decoder. Memory grows with `n_slots` and `context_tokens`."""

    # Longest sequence; the bundle's `max_tokens` when None. More than the model can hold is a
    # UsageError.
    context_tokens: int | None = None
    n_slots: int = 1  # sequences held at once
    guesses: bool = False  # tokens will be guessed, so the session has an `n_guess` over 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_slots < 1:
            raise UsageError(f"n_slots: {self.n_slots!r} must be at least 1")
        if self.context_tokens is not None and self.context_tokens < 4:
            raise UsageError(f"context_tokens: {self.context_tokens!r} must be at least 4")


@dataclass(frozen=True)
class Chunk:
    """Tokens that are appended to one sequence."""

    slot: int  # which sequence, 0 to n_slots - 1
    ids: NDArray[np.int32]  # (n,), n >= 1
    n_logits: int = 1  # of how many of its last tokens the logits are wanted; 0 to n


class DecoderSession(Protocol):
    """An opened decoder: `n_slots` sequences, empty at first. One caller at a time."""

    n_slots: int
    context_tokens: int  # that each sequence can hold
    n_vocab: int
    device: str
    # So many tokens may stand behind one in a chunk, and each has the logits, to the bit, that it
    # has alone; 0 where the session was not opened for guesses.
    n_guess: int

    def extend(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Append each chunk to its sequence (a slot stands in one chunk at most).

        Returns logits (sum of n_logits, V) in the order of chunks and tokens, each predicting the
        token that comes next; they are the engine's memory, valid until the next call. Raises
        InputError where a sequence would grow over `context_tokens`, or an id is out of range;
        then nothing was appended."""
        ...

    def append(self, slot: int, token_id: int) -> NDArray[np.float32]:
        """`extend` by a single token, with as little work around the engine as can be: logits
        (1, V), under the same rules."""
        ...

    def length(self, slot: int) -> int:
        """Tokens that the sequence holds."""
        ...

    def truncate(self, slot: int, n_tokens: int) -> None:
        """Forget all but the first `n_tokens`."""
        ...

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source`, and nothing else."""
        ...

    def fork(self, n_slots: int, context_tokens: int) -> DecoderSession:
        """Empty sequences beside these, over the same weights. Close it before this one."""
        ...

    def close(self) -> None:
        """Free the engine's memory; calling it twice is harmless."""
        ...
