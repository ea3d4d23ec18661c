"""Vocabularies made smaller: which tokens of a tokenizer.json stay, and the file of those alone.

A text whose tokens all stay is cut as before. WordPiece takes the longest piece at each place, and
Unigram the likeliest way to cut: with fewer to choose from, a choice that is left stays the best.
BPE merges the pair of lowest rank, step by step, so that each token that stays keeps the tokens on
the way to it; then the same pair is the lowest at each step.

A word that was unknown stays so where each character has a piece of its own, inside words too, as
in BERT's vocabularies. Where one lacks it, WordPiece and Unigram can find a way to spell the word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from edgelm.runtime.errors import ModelError, RecipeError
from edgelm.targets.gguf.vocab.base import added_tokens, merges_of

HINT = "compile it with its whole vocabulary: leave prune.vocab (--trim-vocab) out"
Move = Callable[[int], int]  # of token ids


class Vocabulary:
    """The tokens of a tokenizer.json, given as the data in it. Raises ModelError for kinds of
    tokenizers that are not known here."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.model: dict[str, Any] = spec["model"]
        self.kind = str(self.model.get("type"))
        if self.kind not in ("WordPiece", "BPE", "Unigram"):
            raise ModelError(f"a vocabulary of the kind {self.kind} cannot be trimmed", hint=HINT)
        marks = ("continuing_subword_prefix", "end_of_word_suffix")
        if self.kind == "BPE" and any(self.model.get(mark) for mark in marks):
            raise ModelError("BPE with marked pieces of words cannot be trimmed", hint=HINT)
        vocab = self.model["vocab"]
        self.tokens: dict[int, str]  # of the model, by id; added tokens can have others
        if self.kind == "Unigram":
            self.tokens = {i: token for i, (token, _) in enumerate(vocab)}
        else:
            self.tokens = {i: token for token, i in vocab.items()}
        self.added = {i: str(t["content"]) for i, t in added_tokens(spec).items()}
        merges = merges_of(self.model) if self.kind == "BPE" else []
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}  # of equal ones the last

    @property
    def ids(self) -> set[int]:
        """Of all tokens."""
        return self.tokens.keys() | self.added.keys()

    def required(self) -> set[int]:
        """Ids that a tokenizer cannot do without: added and special tokens, and those that spell
        what has no other token."""
        ids = set(self.added) | {i for i, token in self.tokens.items() if self._spells(token)}
        ids |= _named(self.spec.get("post_processor"))
        if self.spec.get("padding"):
            ids.add(int(self.spec["padding"]["pad_id"]))
        unknown = self.model.get("unk_token")
        ids |= {i for i, token in self.tokens.items() if token == unknown}
        if self.kind == "Unigram":
            if self.model.get("unk_id") is not None:
                ids.add(int(self.model["unk_id"]))
            scores = [score for _, score in self.model["vocab"]]
            ids.add(scores.index(min(scores)))  # what is unknown weighs a little more than this
        return ids

    def choose(
        self, counts: Mapping[int, int], always: Iterable[int], size: int | None
    ) -> set[int]:
        """Ids that stay: the required ones, `always`, and those counted, up to `size` in all with
        the most frequent first. Raises RecipeError where `size` is too small for the former."""
        kept: set[int] = set()
        for i in self.required() | set(always):
            kept |= self._with_parts(i)
        if size is not None and size < len(kept):
            raise RecipeError(
                f"prune.vocab_size: {size}: {len(kept)} tokens are needed for special tokens and "
                "single characters alone"
            )
        for i in sorted(counts, key=lambda i: (-counts[i], i)):
            missing = self._with_parts(i) - kept
            if size is not None and len(kept) + len(missing) > size:
                break
            kept |= missing
        return kept

    def trimmed(self, kept: Iterable[int]) -> dict[str, Any]:
        """tokenizer.json of the tokens with these ids, which are numbered anew in their order."""
        new = {old: i for i, old in enumerate(sorted(kept))}
        model = dict(self.model)
        if self.kind == "Unigram":
            model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {self.tokens[old]: i for old, i in new.items() if old in self.tokens}
        if self.kind == "BPE":
            left = model["vocab"]
            model["merges"] = [
                [a, b]
                for a, b in merges_of(self.model)
                if a in left and b in left and a + b in left
            ]
        spec = self.spec | {
            "model": model,
            "added_tokens": [t | {"id": new[t["id"]]} for t in self.spec.get("added_tokens") or []],
            "post_processor": _moved(self.spec.get("post_processor"), new.__getitem__),
        }
        if spec.get("padding"):
            spec["padding"] = spec["padding"] | {"pad_id": new[spec["padding"]["pad_id"]]}
        return spec

    def _spells(self, token: str) -> bool:
        """Whether it is a single character, inside a word too, or a byte."""
        if self.kind == "WordPiece":
            token = token.removeprefix(self.model.get("continuing_subword_prefix") or "") or token
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        return len(token) == 1 or (is_byte and bool(self.model.get("byte_fallback")))

    def _with_parts(self, i: int) -> set[int]:
        """The id, and those of all tokens that BPE makes on the way to it."""
        if self.kind != "BPE" or i in self.added or i not in self.tokens:
            return {i}
        ids = self.model["vocab"]
        return {i} | {ids[token] for token in _way_to(self.tokens[i], self._ranks)}


def _way_to(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """What BPE makes of the token's characters until it has made the token; nothing where it ends
    elsewhere: then no text has this token by merging."""
    parts, seen = list(token), set(token)
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(range(len(pairs)), key=lambda k: ranks.get(pairs[k], len(ranks)))
        if pairs[best] not in ranks:
            return set()
        parts[best : best + 2] = ["".join(pairs[best])]
        seen.add(parts[best])
    return seen


def _named(node: dict[str, Any] | None) -> set[int]:
    """The token ids in a post-processor."""
    ids: list[int] = []

    def note(i: int) -> int:
        ids.append(i)
        return i

    _moved(node, note)
    return set(ids)


def _moved(node: dict[str, Any] | None, move: Move) -> dict[str, Any] | None:
    """A post-processor with other token ids. Raises ModelError for an unknown kind."""
    if node is None or node["type"] == "ByteLevel":
        return node
    if node["type"] == "Sequence":
        return node | {"processors": [_moved(child, move) for child in node["processors"]]}
    if node["type"] in ("BertProcessing", "RobertaProcessing"):
        ends = {role: [node[role][0], move(node[role][1])] for role in ("sep", "cls")}
        return node | ends
    if node["type"] == "TemplateProcessing":
        special = {
            name: token | {"ids": [move(i) for i in token["ids"]]}
            for name, token in node["special_tokens"].items()
        }
        return node | {"special_tokens": special}
    raise ModelError(
        f"a vocabulary with the post-processor {node['type']} cannot be trimmed", hint=HINT
    )
