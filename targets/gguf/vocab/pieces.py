"""SentencePiece's BPE as transformers exports it (Llama 2, Mistral, Gemma, Phi-3) -> `llama`.

There spaces are turned into a mark and the whole text is merged at once; what has no token falls
back to bytes. llama.cpp merges whichever neighbours make the token of the highest score, so it
needs no list of pairs: the score is the rank of the first pair that makes the token, negated.
"""

from __future__ import annotations

from typing import Any

from edgelm.targets.gguf.vocab.base import (
    BYTE,
    NORMAL,
    SPACE,
    UNKNOWN,
    Vocab,
    added_tokens,
    by_id,
    merges_of,
    steps,
)

UNMADE = -1_000_000.0  # of tokens that no pair makes
_AFTER_SPECIAL = (
    "llama.cpp puts a space before text that follows a special token, this tokenizer only at the "
    "text's beginning"
)


def pieces_vocab(spec: dict[str, Any]) -> Vocab:
    """The vocabulary, or one of model "none" where llama.cpp would cut texts another way."""
    model = spec["model"]
    prefix = _prefix(spec)
    tokens = by_id(model["vocab"])
    bytes_ = {f"<0x{i:02X}>" for i in range(256)}
    if prefix is None or not model.get("byte_fallback") or not bytes_ <= model["vocab"].keys():
        return Vocab("none")
    pairs = merges_of(model)
    made: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        made.setdefault(left + right, rank)
    special = {t["content"] for t in added_tokens(spec).values()} - made.keys()
    if not _is_complete(set(tokens) - bytes_ - special, set(pairs)):
        return Vocab("none")
    types = [BYTE if token in bytes_ else NORMAL for token in tokens]
    unknown = model["vocab"].get(model.get("unk_token"))
    keys: dict[str, Any] = {"pre": "default", "add_space_prefix": prefix != "never"}
    if unknown is not None:
        types[unknown] = UNKNOWN
        keys["unknown_token_id"] = unknown
    scores = [-float(made[token]) if token in made else UNMADE for token in tokens]
    notes = (_AFTER_SPECIAL,) if prefix == "first" else ()
    return Vocab("llama", tokens, types, scores=scores, keys=keys, notes=notes)


def _prefix(spec: dict[str, Any]) -> str | None:
    """Where a space is put before the text: always (after special tokens too), first or never.

    None where the steps are not those of SentencePiece."""
    normal, pre = steps(spec.get("normalizer")), steps(spec.get("pre_tokenizer"))
    kinds = [step["type"] for step in normal]
    if kinds in (["Replace"], ["Prepend", "Replace"]):
        prepends = kinds[0] == "Prepend"
        marks = normal[-1]["pattern"] == {"String": " "} and normal[-1]["content"] == SPACE
        cuts = [s for s in pre if not (s["type"] == "Split" and s["pattern"] == {"String": " "})]
        if not marks or cuts or (prepends and normal[0]["prepend"] != SPACE):
            return None
        return "always" if prepends else "never"
    if not normal and [step["type"] for step in pre] == ["Metaspace"]:
        (space,) = pre
        if space.get("replacement") == SPACE and not space.get("split", True):
            return str(space.get("prepend_scheme", "always"))
    return None


def _is_complete(tokens: set[str], pairs: set[tuple[str, str]]) -> bool:
    """Whether each way to make a token of two others is a pair: llama.cpp takes any of them."""
    for token in tokens:
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            known = (len(left) == 1 or left in tokens) and (len(right) == 1 or right in tokens)
            if known and (left, right) not in pairs:
                return False
    return True
