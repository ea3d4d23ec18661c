"""Added tokens put in their places, and one entry for each row of the token table."""

from __future__ import annotations

from typing import Any

from edgelm.targets.gguf.vocab.base import (
    CONTROL,
    UNKNOWN,
    UNUSED,
    UNUSED_SCORE,
    USER_DEFINED,
    Vocab,
)


def place_added(vocab: Vocab, added: dict[int, dict[str, Any]], n_rows: int) -> None:
    """Write the added tokens over what stands at their ids."""
    for i, token in sorted(added.items()):
        if i >= n_rows:  # the model has no row for it, in transformers neither
            continue
        while len(vocab.tokens) <= i:
            vocab.tokens.append("")
            vocab.types.append(UNUSED)
            if vocab.scores is not None:
                vocab.scores.append(UNUSED_SCORE)
        vocab.tokens[i] = token["content"]
        if vocab.types[i] != UNKNOWN:
            vocab.types[i] = CONTROL if token.get("special") else USER_DEFINED
        if vocab.scores is not None and vocab.scores[i] == UNUSED_SCORE:
            vocab.scores[i] = 0.0


def fit(vocab: Vocab, n_rows: int) -> None:
    """One entry a row, and no entry twice: llama.cpp ends the process on either."""
    n_missing = n_rows - len(vocab.tokens)
    vocab.tokens = vocab.tokens[:n_rows] + [""] * n_missing
    vocab.types = vocab.types[:n_rows] + [UNUSED] * n_missing
    if vocab.scores is not None:
        vocab.scores = vocab.scores[:n_rows] + [UNUSED_SCORE] * n_missing
    seen: set[str] = set()
    for i, token in enumerate(vocab.tokens):
        if not token or "\0" in token or token in seen:
            vocab.tokens[i] = _unseen(f"[PAD{i}]", seen)
            vocab.types[i] = UNUSED
        seen.add(vocab.tokens[i])


def _unseen(name: str, seen: set[str]) -> str:
    while name in seen:
        name += "_"
    return name
