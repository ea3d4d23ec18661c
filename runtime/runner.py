"""Texts in, raw outputs out, on one opened engine: the loop that everything shares.

Texts are sorted by length, so that a batch holds texts of like length and little padding, and
answers come back in the order of the question. Several batches run at once where the engine is
faster so: threads that share one batch wait for each other at every operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import BatchLimits, Session
from edgelm.runtime.tokenizer import Text, Tokenizer, Tokens

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Outputs:
    """Raw answers to N texts."""

    values: NDArray[np.float32]  # (N, C) logits, or (N, H) vectors, not normalized
    n_tokens: NDArray[np.int32]  # (N,)
    truncated: list[bool]


class Runner:
    """A tokenizer and a session. `run` may be called from many threads at once."""

    def __init__(self, tokenizer: Tokenizer, session: Session) -> None:
        self.tokenizer = tokenizer
        self.session = session

    def run(self, texts: Sequence[Text], advance: Callable[[int], None] | None = None) -> Outputs:
        """Answer `texts` (at least one); `advance(n)` is called after each batch of n."""
        return self.run_tokens(self.tokenizer.encode(texts), advance)

    def run_tokens(self, tokens: Tokens, advance: Callable[[int], None] | None = None) -> Outputs:
        """As `run`, for texts that are tokenized already."""
        values: NDArray[np.float32] | None = None
        for indices, rows in self._answers(tokens):
            if values is None:
                values = np.empty((len(tokens.rows), rows.shape[1]), np.float32)
            values[indices] = rows
            if advance is not None:
                advance(len(indices))
        assert values is not None, "run needs at least one text"
        return Outputs(values, tokens.lengths, tokens.truncated)

    def _answers(self, tokens: Tokens) -> Iterator[tuple[Indices, NDArray[np.float32]]]:
        """Each batch's indices and rows, longest texts first."""
        session, pad_id = self.session, self.tokenizer.limits.pad_id
        plan = list(plan_batches(tokens.lengths, session.limits, at_least=session.parallel))
        if session.parallel == 1 or len(plan) == 1:
            for indices in plan:
                yield indices, session.run(tokens.batch(indices, pad_id))
            return

        def answer(indices: Indices) -> NDArray[np.float32]:
            return session.run(tokens.batch(indices, pad_id), shared=True)

        pool = ThreadPoolExecutor(min(session.parallel, len(plan)), "edgelm-batches")
        try:
            yield from zip(plan, pool.map(answer, plan), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def plan_batches(
    lengths: NDArray[np.int32], limits: BatchLimits, *, at_least: int = 1
) -> Iterator[Indices]:
    """Index arrays that cover all texts once, longest first, within the limits.

    Longest first, so that an engine's memory is as large as it will get after one batch. A text
    longer than `max_tokens` gets a batch of its own. No batch holds more than one
    `at_least`-th of the tokens, so that as many threads have work.
    """
    order = np.argsort(-lengths, kind="stable")
    share = -(-int(lengths.sum()) // at_least)
    max_tokens = min(limits.max_tokens, share)
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(limits.max_sequences, max_tokens // longest))
        yield order[start : start + size]
        start += size
