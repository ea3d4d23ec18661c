"""tokenizer.json, tokenizer_config.json and the chat template out of a file's vocabulary.

The parts are the dictionaries of tokenizer.json's own format; `tokenizers` checks them by loading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.targets.gguf.unpack.file import File
from edgelm.targets.gguf.vocab.base import CONTROL, PHI3_KEEPS, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from edgelm.targets.gguf.vocab.pre import pre_tokenizer_steps

_COMPOSING = ("qwen2", "qwen3")  # graphs whose tokenizers put accents to their letters first
_BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # where llama.cpp adds bos unless told


def write_tokenizer(file: File, folder: Path) -> None:
    """Write the tokenizer's files. Raises ValueError for kinds that are not known."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind = file.vocab("model", None)
    makers = {"gpt2": _words, "llama": _pieces}
    if kind not in makers:
        raise ValueError(f"its tokenizer is of the kind {kind!r}, known are {', '.join(makers)}")
    spec = makers[kind](file)
    begins = file.adds("bos", kind == "llama" or file.vocab("pre", "") in _BEGINS)
    ids = {"bos": file.token_id("bos") if begins else None}
    ids["eos"] = file.token_id("eos") if file.adds("eos", False) else None
    spec |= {"version": "1.0", "truncation": None, "padding": None}
    spec |= {"added_tokens": _added(file), "post_processor": _post_processor(file, ids)}
    try:
        backend = Tokenizer.from_str(json.dumps(spec))
    except Exception as err:  # tokenizers raises this class itself
        raise ValueError(f"its tokenizer cannot be built: {err}") from err
    names = {role: _name(file, key) for role, key in _ROLES.items()}
    names["pad_token"] = names["pad_token"] or names["eos_token"]
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=int(file.keys["context_length"]),
        clean_up_tokenization_spaces=False,
        chat_template=file.chat_template,
        **{role: name for role, name in names.items() if name is not None},
    ).save_pretrained(folder)


_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _name(file: File, role: str) -> str | None:
    i = file.token_id(role)
    return None if i is None else file.tokens[i]


def _vocabulary(file: File) -> dict[str, int]:
    """All tokens but those that only fill the table up."""
    return {
        token: i
        for i, token in enumerate(file.tokens)
        if not (file.types[i] == UNUSED and token.startswith("[PAD"))
    }


def _words(file: File) -> dict[str, Any]:
    """Byte-level BPE."""
    steps, ignores = pre_tokenizer_steps(str(file.vocab("pre", "default")))
    merges = [list(pair.split(" ")) for pair in file.vocab("merges", [])]
    composes = file.graph.arch in _COMPOSING
    return {
        "normalizer": {"type": "NFC"} if composes else None,
        "pre_tokenizer": (
            steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
        ),
        "decoder": steps[-1] | {"use_regex": True},
        "model": _bpe(_vocabulary(file), merges, ignore_merges=ignores),
    }


def _pieces(file: File) -> dict[str, Any]:
    """SentencePiece's BPE: the pairs follow from the scores, the highest first."""
    vocab: dict[str, int] = {}
    scores: dict[str, float] = {}
    stated: list[float] = file.vocab("scores", [])
    for token, i in _vocabulary(file).items():
        # runs of spaces are kept as tokens of a user, who come before any other
        is_run = file.types[i] == USER_DEFINED and not token.strip(" ")
        name = SPACE * len(token) if is_run else token
        vocab[name] = i
        if is_run:
            scores[name] = float("inf")
        elif file.types[i] not in (CONTROL, UNKNOWN, USER_DEFINED):
            scores[name] = stated[i]
    prefix = bool(file.vocab("add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    model = _bpe(vocab, _pairs(scores), byte_fallback=True, fuse_unk=True)
    return {
        "normalizer": (
            {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace
        ),
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model | {"unk_token": _name(file, "unknown")},
    }


def _pairs(scores: dict[str, float]) -> list[list[str]]:
    """Every way to make a token of two, in the order in which llama.cpp would merge them."""
    found: list[tuple[float, int, int, list[str]]] = []
    for token, score in scores.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in scores and right in scores:
                found.append((-score, -len(left), -len(right), [left, right]))
    found.sort(key=lambda pair: pair[:3])
    return [pair for *_, pair in found]


def _bpe(vocab: dict[str, int], merges: list[list[str]], **how: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
        **how,
    }


def _added(file: File) -> list[dict[str, Any]]:
    strips = file.strips_like_phi3
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and token not in PHI3_KEEPS,
            "normalized": False,
            "special": file.types[i] in (CONTROL, UNKNOWN),
        }
        for i, token in enumerate(file.tokens)
        if file.types[i] in (CONTROL, UNKNOWN)
        or (file.types[i] == USER_DEFINED and token.strip(" "))
    ]


def _post_processor(file: File, ids: dict[str, int | None]) -> dict[str, Any] | None:
    ends = {role: file.tokens[i] for role, i in ids.items() if i is not None}
    if not ends:
        return None

    def wrapped(which: str, type_id: int) -> list[dict[str, Any]]:
        text: list[dict[str, Any]] = [{"Sequence": {"id": which, "type_id": type_id}}]
        for role, name in ends.items():
            mark = {"SpecialToken": {"id": name, "type_id": type_id}}
            text = [mark, *text] if role == "bos" else [*text, mark]
        return text

    names = {
        name: {"id": name, "ids": [ids[role]], "tokens": [name]} for role, name in ends.items()
    }
    return {
        "type": "TemplateProcessing",
        "single": wrapped("A", 0),
        "pair": [*wrapped("A", 0), *wrapped("B", 1)],
        "special_tokens": names,
    }
