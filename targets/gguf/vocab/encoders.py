"""Vocabularies of text encoders: WordPiece with a mark before the first piece of a word ("phantom
space"), byte-level BPE, and unigram."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from edgelm.targets.gguf.vocab.base import (
    NORMAL,
    SPACE,
    UNKNOWN,
    Vocab,
    added_tokens,
    by_id,
    find,
    merges_of,
)
from edgelm.targets.gguf.vocab.fit import fit, place_added

# role in tokenizer_config.json -> key in the file (the misspelling is the format's)
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


def encoder_vocab(spec: dict[str, Any], config: dict[str, Any], n_rows: int, family: str) -> Vocab:
    """The vocabulary of one of the encoder families."""
    model = spec["model"]
    makers = {"WordPiece": _wordpiece, "BPE": _bpe, "Unigram": _unigram}
    if model["type"] not in makers:
        return Vocab("none")
    added = added_tokens(spec)
    vocab = makers[model["type"]](spec, family)
    if vocab.model == "none":
        return vocab
    place_added(vocab, added, n_rows)
    fit(vocab, n_rows)
    ids = {t["content"]: i for i, t in added.items()}
    _set_roles(vocab, config, ids, model)
    return vocab


def _wordpiece(spec: dict[str, Any], family: str) -> Vocab:
    model = spec["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    vocab = Vocab("bert", keys={"pre": "default"})
    for token in by_id(model["vocab"]):
        is_inner = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        vocab.tokens.append(token[len(prefix) :] if is_inner else SPACE + token)
        vocab.types.append(NORMAL)
    normalizer = find(spec.get("normalizer"), "BertNormalizer") or {}
    lowercase = bool(normalizer.get("lowercase", False))
    strip = normalizer.get("strip_accents")
    vocab.keys["normalizer.lowercase"] = lowercase
    vocab.keys["normalizer.strip_accents"] = lowercase if strip is None else bool(strip)
    return vocab


def _bpe(spec: dict[str, Any], family: str) -> Vocab:
    model = spec["model"]
    if find(spec.get("pre_tokenizer"), "ByteLevel") is None:
        return Vocab("none")
    tokens = by_id(model["vocab"])
    merges = [" ".join(pair) for pair in merges_of(model)]
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
    space = find(spec.get("pre_tokenizer"), "Metaspace") or {}
    vocab.keys["add_space_prefix"] = space.get("prepend_scheme", "always") != "never"
    vocab.keys["remove_extra_whitespaces"] = True
    charsmap = (find(spec.get("normalizer"), "Precompiled") or {}).get("precompiled_charsmap")
    if charsmap:
        try:
            vocab.keys["precompiled_charsmap"] = base64.b64decode(charsmap)
        except binascii.Error as err:
            raise ValueError("precompiled_charsmap is not base64") from err
    return vocab


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
