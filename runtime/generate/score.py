"""How likely a decoder finds given texts: what is verified when compiling and on the device.

V is the vocabulary's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import Chunk, DecoderOptions, DecoderSession
from edgelm.runtime.floors import check_engine
from edgelm.runtime.generate.held import PIECE_TOKENS
from edgelm.runtime.manifest import Task, TextLimits, Variant
from edgelm.runtime.metrics import Floats, log_softmax
from edgelm.runtime.tokenizer import Tokenizer

BLOCK_TOKENS = 64  # of which the logits are in memory at once: 40 MB for 151,936 words


def logits_after(
    session: DecoderSession, ids: Sequence[int], positions: Sequence[int]
) -> Iterator[tuple[slice, Floats]]:
    """The logits that follow the tokens of `ids` at `positions`, which rise.

    Given in blocks: which of `positions`, and their logits (n, V), valid until the next block.
    Slot 0 is emptied before and after."""
    wanted = np.asarray(positions, np.intp)
    session.truncate(0, 0)
    try:
        start, first = 0, 0
        while first < len(wanted):
            ahead = int(wanted[first]) - start
            stop = start + (min(ahead, PIECE_TOKENS) if ahead else BLOCK_TOKENS)
            stop = min(stop, int(wanted[-1]) + 1)
            piece = np.asarray(ids[start:stop], np.int32)
            rows = session.extend([Chunk(0, piece, 0 if ahead else len(piece))])
            if not ahead:
                last = int(np.searchsorted(wanted, stop))
                yield slice(first, last), rows[wanted[first:last] - start]
                first = last
            start = stop
    finally:
        session.truncate(0, 0)


def golden_row(session: DecoderSession, ids: Sequence[int]) -> tuple[float, float]:
    """A text's two numbers: the mean negative log-likelihood of its tokens after the first, in
    nats (0 where there are none), and the largest logit after its last."""
    losses: list[NDArray[np.float64]] = []
    largest = 0.0
    targets = np.asarray([*ids[1:], 0], np.intp)  # the last row predicts what is not there
    for which, logits in logits_after(session, ids, range(len(ids))):
        wanted = targets[which]
        losses.append(-log_softmax(logits)[np.arange(len(wanted)), wanted])
        largest = float(logits[-1].max())
    known = np.concatenate(losses)[:-1]
    return (float(known.mean()) if len(known) else 0.0), largest


def golden_rows(session: DecoderSession, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """`golden_row` of each text, (N, 2)."""
    return np.array([golden_row(session, ids) for ids in rows])


def prompt_ids(
    tokenizer_dir: Path, texts: Sequence[str], task: Task, text: TextLimits
) -> list[list[int]]:
    """Token ids of whole prompts. A chat's bring their special tokens with them."""
    tokenizer = Tokenizer(tokenizer_dir, text, truncates=False)
    return [tokenizer.prompt_ids(one, special=not task.chat) for one in texts]


def open_decoder(bundle: Bundle, variant: Variant, options: DecoderOptions) -> DecoderSession:
    """The variant's engine alone. Raises TargetUnavailable, MissingExtra, BundleError."""
    from edgelm.targets import get_target

    check_engine(variant)
    target = get_target(variant.target)
    text = bundle.manifest.text
    return bundle.open_variant(
        variant, lambda folder: target.open_decoder(folder, variant, text, options)
    )
