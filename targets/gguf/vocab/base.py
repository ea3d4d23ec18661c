"""What a vocabulary is in a GGUF file, and how tokenizer.json is looked through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
UNUSED_SCORE = -10_000.0
# llama.cpp finds Phi-3 by the file's name, wants these tokens then, and drops white space after all
# special ones but the first three
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")
PHI3_NEEDS = (*PHI3_KEEPS, "</s>")


@dataclass
class Vocab:
    """`tokens[i]`, `types[i]` describe token id i; V entries, one for each row of the table."""

    model: str  # llama.cpp's name of the algorithm, "none" when it has no fitting one
    tokens: list[str] = field(default_factory=list[str])
    types: list[int] = field(default_factory=list[int])
    scores: list[float] | None = None
    merges: list[str] | None = None
    keys: dict[str, Any] = field(default_factory=dict[str, Any])  # tokenizer.ggml.* beside those
    chat_template: str | None = None
    strips_like_phi3: bool = False  # white space after special tokens is dropped
    notes: tuple[str, ...] = ()  # where llama.cpp's own tokenizer is known to differ


def by_id(vocab: dict[str, int]) -> list[str]:
    """Tokens in the order of their ids; a hole in the ids gets an empty name, mended by `fit`."""
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, i in vocab.items():
        tokens[i] = token
    return tokens


def added_tokens(spec: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The tokens that are cut out of a text before anything else, by id."""
    return {int(t["id"]): t for t in spec.get("added_tokens") or []}


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """BPE's pairs by rank; older files join each with a space."""
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return [(left, right) for left, right in pairs]


def find(node: Any, kind: str) -> dict[str, Any] | None:
    """The first step of that type in a normalizer or pre-tokenizer, however it is nested."""
    return next(_walk(node, kind), None)


def steps(node: Any) -> list[dict[str, Any]]:
    """A normalizer's, pre-tokenizer's or post-processor's steps in order, sequences opened."""
    if node is None:
        return []
    for inner in ("normalizers", "pretokenizers", "processors"):
        if node.get("type") == "Sequence" and inner in node:
            return [step for child in node[inner] for step in steps(child)]
    return [node]


def _walk(node: Any, kind: str) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("type") == kind:
            yield node
        for child in node.values():
            yield from _walk(child, kind)
    elif isinstance(node, list):
        for child in node:
            yield from _walk(child, kind)
