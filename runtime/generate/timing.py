"""How fast a decoder is: first token, prompt, answer; and the memory that it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgelm.runtime.bench import peak_memory_bytes, repeat
from edgelm.runtime.bundle import TOKENIZER_DIR, Bundle
from edgelm.runtime.engine import Chunk, DecoderOptions, DecoderSession, Device
from edgelm.runtime.errors import UsageError
from edgelm.runtime.generate.held import PIECE_TOKENS
from edgelm.runtime.generate.score import open_decoder, prompt_ids
from edgelm.runtime.load import unavailable
from edgelm.runtime.manifest import Measured
from edgelm.runtime.select import select_variant

ANSWER_TOKENS = 64  # timed one after another, after a prompt of median length
WARM_UP = 2


def measure_decoder(
    root: Path,
    name: str,
    texts: Sequence[str],
    *,
    device: Device,
    threads: int | None,
    seconds: float,
) -> Measured:
    """Measure the variant in this process; the texts are whole prompts. Raises what `load` does."""
    bundle = Bundle(root)
    kind = bundle.manifest.task.kind
    variant = select_variant(bundle.manifest, name, lambda v: unavailable(v.target, kind, device))
    bundle.check_tokenizer()
    tokenizer, manifest = bundle.folder / TOKENIZER_DIR, bundle.manifest
    rows = prompt_ids(tokenizer, texts, manifest.task, manifest.text)
    rows = [ids for ids in rows if ids]
    if not rows:
        raise UsageError("the texts to measure with have no tokens")
    session = open_decoder(bundle, variant, DecoderOptions(device, threads))
    try:
        first_s, answer_s, n_answer = _answers(session, rows, seconds)
        prompt_s, n_prompt = _prompts(session, rows, seconds)
    finally:
        session.close()
    return Measured(
        size_bytes=variant.size_bytes,
        first_token_ms=round(1e3 * first_s, 3),
        prompt_tokens_per_s=round(n_prompt / prompt_s, 1),
        answer_tokens_per_s=round(n_answer / answer_s, 2),
        memory_bytes=peak_memory_bytes(),
        threads=threads,
    )


def _answers(
    session: DecoderSession, rows: Sequence[Sequence[int]], seconds: float
) -> tuple[float, float, int]:
    """Median seconds to the first token of a prompt of median length, median seconds that the
    tokens after it took, and how many those are."""
    n_answer = max(1, min(ANSWER_TOKENS, session.context_tokens // 2))
    prompt = sorted(rows, key=len)[len(rows) // 2][: session.context_tokens - n_answer]
    firsts: list[float] = []

    def answer() -> None:
        session.truncate(0, 0)
        started = time.perf_counter()
        token = _next(session, prompt)
        firsts.append(time.perf_counter() - started)
        for _ in range(n_answer):
            token = _next(session, [token])

    for _ in range(WARM_UP):
        answer()
    firsts.clear()
    wholes = repeat(answer, seconds, at_least=3)
    session.truncate(0, 0)
    later = [whole - first for whole, first in zip(wholes, firsts, strict=True)]
    return float(np.median(firsts)), float(np.median(later)), n_answer


def _prompts(
    session: DecoderSession, rows: Sequence[Sequence[int]], seconds: float
) -> tuple[float, int]:
    """Median seconds of a long prompt, made of the texts one after another, and its tokens."""
    room = min(PIECE_TOKENS, session.context_tokens)
    joined = [token for ids in rows for token in ids][:room]
    prompt = (joined * (room // len(joined) + 1))[:room]

    def read() -> None:
        session.truncate(0, 0)
        _next(session, prompt)

    read()
    times = repeat(read, seconds, at_least=3)
    session.truncate(0, 0)
    return float(np.median(times)), room


def _next(session: DecoderSession, ids: Sequence[int]) -> int:
    """The likeliest token after `ids`, which are appended."""
    rows = session.extend([Chunk(0, np.asarray(ids, np.int32))])
    return int(rows[0].argmax())
