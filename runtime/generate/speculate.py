"""Guesses of the next tokens, for the model to check several at once.

A guess costs one wider step of the engine, and saves a step for each token that was right. Every
token is picked from the model's own logits, which an engine that was opened for guesses rounds as
it does without them, so the answer is that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgelm.runtime.generate.held import Held

MAX_NGRAM, MIN_NGRAM = 6, 2
FEW = 3  # tokens of a guess at first


class Guesser(Protocol):
    """Guesses for one answer."""

    def guess(self, ids: Sequence[int]) -> list[int]:
        """Tokens that may follow `ids`, which only ever grow; empty without an idea."""
        ...

    def learn(self, n_guessed: int, n_right: int) -> None:
        """How many of the last guess were right."""
        ...


class _Length:
    """Long guesses after one that held, short ones after one that failed early.

    With the token before it a short one makes four tokens, and a step of four costs little more
    than one of three where an engine multiplies four rows at once."""

    def __init__(self, most: int) -> None:
        """most: tokens of a guess."""
        self._few, self._most = min(FEW, most), most
        self.n = self._few

    def learn(self, n_guessed: int, n_right: int) -> None:
        if n_guessed and n_right == n_guessed:
            self.n = self._most
        elif n_right < self._few:
            self.n = self._few


class PromptLookup(_Length):
    """Where the end of the text stood before, what followed it there is guessed to follow again
    (Saxena 2023, "Prompt Lookup Decoding"). It pays where answers repeat their prompt, as in
    extraction and rewriting, and costs little elsewhere."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> place after its last occurrence
        self._n_seen = 0

    def guess(self, ids: Sequence[int]) -> list[int]:
        self._note(ids)
        for n in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
            at = self._after.get(tuple(ids[-n:])) if len(ids) >= n else None
            if at is not None:
                return list(ids[at : at + self.n])
        return []

    def _note(self, ids: Sequence[int]) -> None:
        """Index every n-gram that has a successor by now."""
        for end in range(max(self._n_seen, MIN_NGRAM), len(ids)):
            for n in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                self._after[tuple(ids[end - n : end])] = end
        self._n_seen = len(ids)


class Draft(_Length):
    """A smaller model of the same vocabulary says what it would answer (Leviathan et al. 2023,
    arXiv:2211.17192, with picks in place of rejection sampling)."""

    def __init__(self, held: Held, most: int) -> None:
        super().__init__(most)
        self._held = held

    def guess(self, ids: Sequence[int]) -> list[int]:
        found: list[int] = []
        room = self._held.context_tokens - len(ids)
        for _ in range(min(self.n, room)):
            found.append(int(self._held.logits([*ids, *found])[0].argmax()))
        return found
