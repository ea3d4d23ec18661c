"""The decoder session: what one for guesses promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_decoders

from edgelm.runtime.engine import Chunk, DecoderOptions, DecoderSession
from edgelm.runtime.errors import UsageError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.precisions import QUANTIZED_FILE_TYPES, needs_matrix

CONTEXT = 1024


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = dict(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    return tiny_decoders.make_decoder(tmp_path_factory.mktemp("model"), "smollm", **dims)


def opened(model_dir: Path, folder: Path, precision: str) -> DecoderSession:
    text = TextLimits(CONTEXT)
    made = TARGET.lower(LowerRequest(model_dir, Task("text-generation"), text, precision, folder))
    files = tuple(FileEntry(name, "", 0) for name in made.files)
    variant = Variant(f"gguf-{precision}", "gguf", precision, files, made.options)
    options = DecoderOptions("cpu", threads=2, guesses=True)
    return TARGET.open_decoder(folder, variant, text, options)


@pytest.mark.parametrize(
    "precision", [p for p in QUANTIZED_FILE_TYPES if not needs_matrix(p) and p != "iq4_nl"]
)
def test_guesses_change_no_bit_of_a_tokens_logits(
    precision: str, model_dir: Path, tmp_path: Path
) -> None:
    session = opened(model_dir, tmp_path, precision)
    try:
        rng = np.random.default_rng(0)
        n = 600  # over 512, where one token's attention is cut into parts
        ids = rng.integers(3, session.n_vocab, n + 1 + session.n_guess).astype(np.int32)
        session.extend([Chunk(0, ids[:n], 1)])
        guessed = session.extend([Chunk(0, ids[n:], len(ids) - n)]).copy()
        session.truncate(0, n)
        alone = [session.append(0, int(token)).copy() for token in ids[n:]]
        np.testing.assert_array_equal(guessed, np.concatenate(alone))
    finally:
        session.close()


@pytest.mark.parametrize("precision", ["f16", "iq4_nl"])
def test_types_that_round_otherwise_are_refused(
    precision: str, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="round guessed tokens otherwise"):
        opened(model_dir, tmp_path, precision)
