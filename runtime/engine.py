"""What an engine is to the runtime: token batches in, float32 rows out; it knows nothing of text.

Letters: B sequences in a batch, T tokens of the longest, C classes, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from edgelm.runtime.errors import UsageError

if TYPE_CHECKING:  # the command line reads DEVICES without loading numpy
    import numpy as np
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")


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

    def __post_init__(self) -> None:
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
