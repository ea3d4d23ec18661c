"""The tokenizer as llama.cpp wants it, from tokenizer.json.

edgelm's engine is fed token ids and never reads it; llama.cpp and ollama do when they load the
file alone. Three kinds exist: WordPiece with a mark before the first piece of a word ("phantom
space"), byte-level BPE, and unigram. What fits none becomes a vocabulary of numbers only.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
_SPACE = "\u2581"
_UNUSED_SCORE = -10_000.0
# role in tokenizer_config.json -> key in the file (the misspelling is the format's)
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


@dataclass
class Vocab:
    """`tokens[i]`, `types[i]` describe token id i; V entries, one for each row of the table."""

    model: str  # llama.cpp's name of the algorithm, "none" when it has no fitting one
    tokens: list[str] = field(default_factory=list[str])
    types: list[int] = field(default_factory=list[int])
    scores: list[float] | None = None
    merges: list[str] | None = None
    keys: dict[str, Any] = field(default_factory=dict[str, Any])  # tokenizer.ggml.* beside those


def read_vocab(folder: Path, n_rows: int, family: str) -> Vocab:
    """The vocabulary, filled up or cut to `n_rows`. Raises ModelError."""
    path = folder / "tokenizer.json"
    try:
        spec = json.loads(path.read_text("utf-8"))
        config_path = folder / "tokenizer_config.json"
        config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}
        return _build(spec, config, n_rows, family)
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
        raise ModelError(f"{path}: not a tokenizer that can be understood: {err!r}") from err


def _build(spec: dict[str, Any], config: dict[str, Any], n_rows: int, family: str) -> Vocab:
    model = spec["model"]
    makers = {"WordPiece": _wordpiece, "BPE": _bpe, "Unigram": _unigram}
    if model["type"] not in makers:
        return Vocab("none")
    added = {int(t["id"]): t for t in spec.get("added_tokens") or []}
    vocab = makers[model["type"]](spec, family)
    if vocab.model == "none":
        return vocab
    _place_added(vocab, added, n_rows)
    _fit(vocab, n_rows)
    ids = {t["content"]: i for i, t in added.items()}
    _set_roles(vocab, config, ids, model)
    return vocab


def _wordpiece(spec: dict[str, Any], family: str) -> Vocab:
    model = spec["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    vocab = Vocab("bert", keys={"pre": "default"})
    for token in _by_id(model["vocab"]):
        is_inner = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        vocab.tokens.append(token[len(prefix) :] if is_inner else _SPACE + token)
        vocab.types.append(NORMAL)
    normalizer = _find(spec.get("normalizer"), "BertNormalizer") or {}
    lowercase = bool(normalizer.get("lowercase", False))
    strip = normalizer.get("strip_accents")
    vocab.keys["normalizer.lowercase"] = lowercase
    vocab.keys["normalizer.strip_accents"] = lowercase if strip is None else bool(strip)
    return vocab


def _bpe(spec: dict[str, Any], family: str) -> Vocab:
    model = spec["model"]
    if _find(spec.get("pre_tokenizer"), "ByteLevel") is None:
        return Vocab("none")
    tokens = _by_id(model["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    keys: dict[str, Any] = {"add_bos_token": True}
    if family == "modernbert":
        keys |= {"pre": "modern-bert", "add_eos_token": True, "add_sep_token": True}
    else:  # llama.cpp closes a sequence of this kind with eos, and pairs with sep
        keys |= {"pre": "roberta-bpe", "add_eos_token": True, "add_sep_token": True}
    return Vocab("gpt2", tokens, [NORMAL] * len(tokens), merges=merges, keys=keys)


def _unigram(spec: dict[str, Any], family: str) -> Vocab:
    model = spec["model"]
    pieces = model["vocab"]
    vocab = Vocab(
        "t5",
        [str(token) for token, _ in pieces],
        [NORMAL] * len(pieces),
        scores=[float(score) for _, score in pieces],
        keys={"pre": "default", "add_bos_token": True, "add_eos_token": True},
    )
    if model.get("unk_id") is not None:
        vocab.types[model["unk_id"]] = UNKNOWN
        vocab.keys["unknown_token_id"] = int(model["unk_id"])
    space = _find(spec.get("pre_tokenizer"), "Metaspace") or {}
    vocab.keys["add_space_prefix"] = space.get("prepend_scheme", "always") != "never"
    vocab.keys["remove_extra_whitespaces"] = True
    charsmap = (_find(spec.get("normalizer"), "Precompiled") or {}).get("precompiled_charsmap")
    if charsmap:
        try:
            vocab.keys["precompiled_charsmap"] = base64.b64decode(charsmap)
        except binascii.Error as err:
            raise ValueError("precompiled_charsmap is not base64") from err
    return vocab


def _by_id(vocab: dict[str, int]) -> list[str]:
    """Tokens in the order of their ids; a hole in the ids gets an empty name, mended by _fit."""
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, i in vocab.items():
        tokens[i] = token
    return tokens


def _place_added(vocab: Vocab, added: dict[int, dict[str, Any]], n_rows: int) -> None:
    for i, token in sorted(added.items()):
        if i >= n_rows:  # the model has no row for it, in transformers neither
            continue
        while len(vocab.tokens) <= i:
            vocab.tokens.append("")
            vocab.types.append(UNUSED)
            if vocab.scores is not None:
                vocab.scores.append(_UNUSED_SCORE)
        vocab.tokens[i] = token["content"]
        if vocab.types[i] != UNKNOWN:
            vocab.types[i] = CONTROL if token.get("special") else USER_DEFINED
        if vocab.scores is not None and vocab.scores[i] == _UNUSED_SCORE:
            vocab.scores[i] = 0.0


def _fit(vocab: Vocab, n_rows: int) -> None:
    """One entry a row, and no entry twice: llama.cpp ends the process on either."""
    n_missing = n_rows - len(vocab.tokens)
    vocab.tokens = vocab.tokens[:n_rows] + [""] * n_missing
    vocab.types = vocab.types[:n_rows] + [UNUSED] * n_missing
    if vocab.scores is not None:
        vocab.scores = vocab.scores[:n_rows] + [_UNUSED_SCORE] * n_missing
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


def _set_roles(
    vocab: Vocab, config: dict[str, Any], ids: dict[str, int], model: dict[str, Any]
) -> None:
    """Special tokens by role; WordPiece files call the class token the first of a sequence."""
    roles: dict[str, Any] = {role: config.get(role) for role in (*_ROLES, "cls_token")}
    roles["unk_token"] = roles["unk_token"] or model.get("unk_token")
    roles["bos_token"] = roles["cls_token"] or roles["bos_token"]
    roles["eos_token"] = roles["eos_token"] or roles["sep_token"]
    if vocab.model == "bert":
        roles["eos_token"] = None
    for role, key in _ROLES.items():
        name = roles[role]
        content = name.get("content") if isinstance(name, dict) else name
        token_id = ids.get(content) if isinstance(content, str) else None
        if token_id is not None and token_id < len(vocab.tokens):
            vocab.keys[key] = token_id
            if role == "unk_token" and vocab.model != "bert":
                vocab.types[token_id] = UNKNOWN


def _find(node: Any, kind: str) -> dict[str, Any] | None:
    """The first step of that type in a normalizer or pre-tokenizer, however it is nested."""
    return next(_walk(node, kind), None)


def _walk(node: Any, kind: str) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("type") == kind:
            yield node
        for child in node.values():
            yield from _walk(child, kind)
    elif isinstance(node, list):
        for child in node:
            yield from _walk(child, kind)
