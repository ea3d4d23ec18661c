"""Vocabularies of decoders: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`), what begins
and ends a text, and the chat template."""

from __future__ import annotations

from typing import Any

from edgelm.targets.gguf.vocab.base import (
    NORMAL,
    PHI3_KEEPS,
    PHI3_NEEDS,
    SPACE,
    USER_DEFINED,
    Vocab,
    added_tokens,
    by_id,
    find,
    merges_of,
    steps,
)
from edgelm.targets.gguf.vocab.fit import fit, place_added
from edgelm.targets.gguf.vocab.pieces import UNMADE, pieces_vocab
from edgelm.targets.gguf.vocab.pre import pre_tokenizer_name, pre_tokenizer_note

_COMPOSES = "llama.cpp does not compose accents (NFC) before it cuts a text, this tokenizer does"


def decoder_vocab(
    spec: dict[str, Any],
    config: dict[str, Any],
    n_rows: int,
    ends: list[dict[str, Any]],
    template: str | None,
) -> Vocab:
    """The vocabulary. `ends`: generation_config.json and config.json, which state what ends an
    answer; `template`: chat_template.jinja."""
    vocab = _tokens(spec)
    vocab.chat_template = template or _template(config)
    if vocab.model == "none":
        return vocab
    added = added_tokens(spec)
    made = {i for i, score in enumerate(vocab.scores or ()) if score > UNMADE}
    place_added(vocab, added, n_rows)
    for i in made & added.keys():
        # the mark is written out as a space only where it stands in a normal token
        if vocab.types[i] == USER_DEFINED and SPACE in vocab.tokens[i]:
            vocab.types[i] = NORMAL
    fit(vocab, n_rows)
    vocab.strips_like_phi3 = _strips_like_phi3(added)
    _set_roles(vocab, config, added, ends, spec)
    return vocab


def _tokens(spec: dict[str, Any]) -> Vocab:
    model = spec["model"]
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(key) for key in odd):
        return Vocab("none")
    if find(spec.get("pre_tokenizer"), "ByteLevel") is None:
        return pieces_vocab(spec)
    normal = [step["type"] for step in steps(spec.get("normalizer"))]
    pre = pre_tokenizer_name(spec)
    if pre is None or set(normal) - {"NFC"} or model.get("byte_fallback"):
        return Vocab("none")
    tokens = by_id(model["vocab"])
    merges = [" ".join(pair) for pair in merges_of(model)]
    notes = tuple(n for n in (_COMPOSES if normal else None, pre_tokenizer_note(pre)) if n)
    if not merges:  # llama.cpp wants the list, and the format has no empty ones
        return Vocab("none")
    types = [NORMAL] * len(tokens)
    return Vocab("gpt2", tokens, types, merges=merges, keys={"pre": pre}, notes=notes)


def _template(config: dict[str, Any]) -> str | None:
    """The template in tokenizer_config.json; of several, the default one."""
    stated = config.get("chat_template")
    if isinstance(stated, list):
        stated = {t["name"]: t["template"] for t in stated}.get("default")
    return stated or None


def _strips_like_phi3(added: dict[int, dict[str, Any]]) -> bool:
    strips = {t["content"]: bool(t.get("rstrip")) for t in added.values()}
    return all(name in strips for name in PHI3_NEEDS) and all(
        strip == (name not in PHI3_KEEPS) for name, strip in strips.items()
    )


def _set_roles(
    vocab: Vocab,
    config: dict[str, Any],
    added: dict[int, dict[str, Any]],
    ends: list[dict[str, Any]],
    spec: dict[str, Any],
) -> None:
    ids = {token["content"]: i for i, token in added.items() if i < len(vocab.tokens)}
    first, last = _wrapped(spec, ids)

    def role(name: str) -> int | None:
        stated = config.get(name)
        content = stated.get("content") if isinstance(stated, dict) else stated
        return ids.get(content) if isinstance(content, str) else None

    eos = _ends(ends, len(vocab.tokens))
    own = last if last is not None else role("eos_token")
    if own is not None:
        eos = [own, *(i for i in eos if i != own)]
    begin = first if first is not None else role("bos_token")
    found = {
        "bos_token_id": begin,
        "eos_token_id": eos[0] if eos else None,
        "padding_token_id": role("pad_token"),
        "unknown_token_id": vocab.keys.get("unknown_token_id", role("unk_token")),
        **_further_ends(vocab, eos[1:]),
    }
    vocab.keys |= {key: i for key, i in found.items() if i is not None}
    vocab.keys |= {"add_bos_token": first is not None, "add_eos_token": last is not None}


def _ends(stated: list[dict[str, Any]], n: int) -> list[int]:
    """What ends an answer, by the first file that says so."""
    for values in stated:
        value = values.get("eos_token_id")
        if value is not None:
            return [int(i) for i in (value if isinstance(value, list) else [value]) if i < n]
    return []


def _further_ends(vocab: Vocab, ids: list[int]) -> dict[str, int]:
    """The file has a place for the end of a turn and one for the end of a message."""
    found: dict[str, int] = {}
    for i in ids:
        is_message = vocab.tokens[i] == "<|eom_id|>"
        keys = ("eom_token_id", "eot_token_id") if is_message else ("eot_token_id", "eom_token_id")
        free = next((key for key in keys if key not in found), None)
        if free is not None:
            found[free] = i
    return found


def _wrapped(spec: dict[str, Any], ids: dict[str, int]) -> tuple[int | None, int | None]:
    """The tokens that the post-processor puts before and after a text."""
    template = find(spec.get("post_processor"), "TemplateProcessing")
    if template is None:
        return None, None
    parts = template["single"]
    names = template.get("special_tokens") or {}

    def token(part: dict[str, Any]) -> int | None:
        if "SpecialToken" not in part:
            return None
        name = str(part["SpecialToken"]["id"])
        stated = names[name]["ids"] if name in names else []
        return ids.get(name, stated[0] if len(stated) == 1 else None)

    if not parts:
        return None, None
    return token(parts[0]), token(parts[-1])
