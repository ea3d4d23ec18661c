"""What `genai_config.json`, ONNX Runtime GenAI's description of a folder, says of a decoder.

It is read strictly: nothing is allocated or opened by numbers that no model has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import parse_json

FILE_NAME = "genai_config.json"
MAX_SIZE_BYTES = 2**20
LOGITS_FROM = "logits_from"  # an input that edgelm adds; nothing in the description names it

PAST = ("past_key_values.%d.key", "past_key_values.%d.value")
PRESENT = ("present.%d.key", "present.%d.value")
INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "past_key_names": PAST[0],
    "past_value_names": PAST[1],
}
OUTPUTS = {"logits": "logits", "present_key_names": PRESENT[0], "present_value_names": PRESENT[1]}


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that the engine's buffers follow from."""

    n_layers: int
    n_kv_heads: int
    head_size: int
    n_vocab: int
    context_tokens: int  # the longest sequence that the model knows positions for

    @property
    def caches(self) -> tuple[tuple[str, str], ...]:
        """Names of each key and value cache, as input and as output."""
        pairs = tuple(zip(PAST, PRESENT, strict=True))
        return tuple((i % n, o % n) for n in range(self.n_layers) for i, o in pairs)


def read_shape(path: Path, model_file: str) -> DecoderShape:
    """Of a folder whose model is the file `model_file`. Raises BundleError."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SIZE_BYTES + 1)
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror or err}") from err
    if len(raw) > MAX_SIZE_BYTES:
        raise BundleError(f"{path}: larger than {MAX_SIZE_BYTES} bytes")
    model = _mapping(parse_json(raw, str(path)), "model", path)
    decoder = _mapping(model, "decoder", path)
    for key, known in (("filename", model_file), ("inputs", INPUTS), ("outputs", OUTPUTS)):
        if decoder.get(key) != known:
            raise BundleError(f"{path}: decoder.{key}: {decoder.get(key)!r} is not {known!r}")
    return DecoderShape(
        n_layers=_size(decoder, "num_hidden_layers", 4096, path),
        n_kv_heads=_size(decoder, "num_key_value_heads", 4096, path),
        head_size=_size(decoder, "head_size", 4096, path),
        n_vocab=_size(model, "vocab_size", 2**24, path),
        context_tokens=_size(model, "context_length", 2**31 - 1, path),
    )


def _mapping(data: Any, key: str, path: Path) -> dict[str, Any]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: it has no mapping {key!r}")
    return found


def _size(data: dict[str, Any], key: str, most: int, path: Path) -> int:
    value = data.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise BundleError(f"{path}: {key}: {value!r} is not a whole number of 1 to {most}")
    return value
