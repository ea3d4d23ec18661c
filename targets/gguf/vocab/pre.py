"""Which of llama.cpp's pre-tokenizers cuts a text as tokenizer.json says.

llama.cpp names them by the model that brought them and has their patterns in its code, so a file
can only name one. Each row holds the steps of a pre-tokenizer, and whether a word that is itself a
token stays whole before any pair is merged (`ignore_merges`), which the name decides too.
"""

from __future__ import annotations

from typing import Any

from edgelm.targets.gguf.vocab.base import steps

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"

LLAMA3 = _SUFFIXES + _LETTERS + r"|\p{N}{1,3}" + _TAIL
QWEN2 = _SUFFIXES + _LETTERS + r"|\p{N}" + _TAIL
TEKKEN = f"{_LOWER}|{_UPPER}" + r"|\p{N}" + _PATH_TAIL
GPT4O = f"{_LOWER}{_SUFFIXES}?|{_UPPER}{_SUFFIXES}?" + r"|\p{N}{1,3}" + _PATH_TAIL
_WORDS, _DIGITS, _BYTES = "words", "digits", "bytes"

# (steps, ignore_merges) -> name
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_WORDS,), False): "gpt-2",
    ((_DIGITS, _WORDS), False): "smollm",
    ((LLAMA3, _BYTES), True): "llama-bpe",
    ((LLAMA3, _BYTES), False): "smaug-bpe",
    ((QWEN2, _BYTES), False): "qwen2",
    ((TEKKEN, _BYTES), True): "tekken",
    ((GPT4O, _BYTES), False): "gpt-4o",
}
# whose patterns llama.cpp has in a simpler form
_SIMPLER = ("tekken", "gpt-4o")
_SIMPLER_NOTE = (
    "llama.cpp cuts words with capital letters other than A to Z, or with combining marks, another "
    "way than this tokenizer"
)


def pre_tokenizer_note(name: str) -> str | None:
    """Where llama.cpp's pattern of that name is known to differ."""
    return _SIMPLER_NOTE if name in _SIMPLER else None


def pre_tokenizer_name(spec: dict[str, Any]) -> str | None:
    """The name for `tokenizer.ggml.pre`, or None where llama.cpp has no equal."""
    kinds = tuple(_kind(step) for step in steps(spec.get("pre_tokenizer")))
    ignores = bool(spec["model"].get("ignore_merges", False))
    return None if None in kinds else _NAMES.get((kinds, ignores))  # type: ignore[arg-type]


def _kind(step: dict[str, Any]) -> str | None:
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space", True):
        return _WORDS if step.get("use_regex", True) else _BYTES
    if step["type"] == "Digits" and step.get("individual_digits"):
        return _DIGITS
    is_split = step["type"] == "Split" and step["behavior"] == "Isolated"
    if is_split and not step.get("invert", False):
        return step["pattern"].get("Regex")
    return None


def pre_tokenizer_steps(name: str) -> tuple[list[dict[str, Any]], bool]:
    """The other way: the steps of a name and its `ignore_merges`. Raises ValueError."""
    name = _ALIASES.get(name, name)
    for (kinds, ignores), known in _NAMES.items():
        if known == name:
            return [_step(kind) for kind in kinds], ignores
    raise ValueError(f"the pre-tokenizer {name!r} is not known; known are {_known()}")


# other models' names for the same
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "deepseek-r1-qwen": "qwen2",
    "megrez": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "phi-2": "gpt-2",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
}


def _known() -> str:
    return ", ".join(sorted({*_NAMES.values(), *_ALIASES}))


def _step(kind: str) -> dict[str, Any]:
    if kind == _DIGITS:
        return {"type": "Digits", "individual_digits": True}
    if kind in (_WORDS, _BYTES):
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": kind == _WORDS,
        }
    split = {"type": "Split", "pattern": {"Regex": kind}, "behavior": "Isolated"}
    return split | {"invert": False}
