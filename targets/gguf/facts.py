"""What a checked GGUF header says of the model, and the rules llama.cpp aborts on when broken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf.check import Header

MAX_LAYERS = 512  # llama.cpp's own bound
MAX_CONTEXT = 2**20

_COUNTS = ("context_length", "embedding_length", "block_count", "feed_forward_length")
_HEADS = "attention.head_count"
_EPS = "attention.layer_norm_epsilon"
_SHARED = (*_COUNTS, _HEADS, _EPS, "attention.causal", "pooling_type", "classifier.output_labels")
# Keys of each graph, without the graph's name before them. A file with others is not ours, and
# some of those (expert counts, head sizes) end the process when they do not fit.
KNOWN_KEYS: dict[str, tuple[str, ...]] = {
    "bert": (*_SHARED, "vocab_size"),
    "modern-bert": (
        *_SHARED,
        "vocab_size",
        "classifier.pooling_type",
        "hidden_activation",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scaling.type",
    ),
}


@dataclass(frozen=True)
class Facts:
    """The sizes an engine needs."""

    arch: str
    n_vocab: int  # V
    n_embd: int  # H
    context_length: int


def read_facts(header: Header, path: Path) -> Facts:
    """Check the graph's keys and give its sizes. Raises BundleError."""
    try:
        return _facts(header)
    except ValueError as err:
        raise BundleError(f"{path}: not a usable GGUF file: {err}") from err


def _facts(header: Header) -> Facts:
    keys = header.keys
    arch = keys.get("general.architecture")
    if not isinstance(arch, str) or arch not in KNOWN_KEYS:
        raise ValueError(f"the graph {arch!r}, known are {', '.join(KNOWN_KEYS)}")
    own = {k[len(arch) + 1 :]: v for k, v in keys.items() if k.startswith(f"{arch}.")}
    unknown = set(own) - set(KNOWN_KEYS[arch])
    if unknown or any(k.startswith("split.") for k in keys):
        raise ValueError(f"the keys {', '.join(sorted(unknown)) or 'split.*'} are not known here")
    layers = _count(own, "block_count", MAX_LAYERS)
    width = _count(own, "embedding_length", 2**20)
    heads = _count(own, _HEADS, 2**12)
    context = _count(own, "context_length", MAX_CONTEXT)
    _count(own, "feed_forward_length", 2**24)
    if width % heads or width // heads % 2:
        raise ValueError(f"{width} values do not split evenly over {heads} heads")
    for name in (_EPS, "rope.freq_base", "rope.freq_base_swa"):
        value = own.get(name, 1.0)
        if not isinstance(value, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r}, not a positive number")
    _check_modes(own, keys, layers)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[1] != width:
        raise ValueError("token_embd.weight is missing or not of the stated width")
    return Facts(arch, table.shape[0], width, context)


def _check_modes(own: Mapping[str, Any], keys: Mapping[str, Any], layers: int) -> None:
    if own.get("attention.causal") is not False:
        raise ValueError("attention.causal is not false; edgelm's models look both ways")
    if own.get("pooling_type") not in range(5) or own.get("classifier.pooling_type", 1) not in (
        1,
        2,
    ):
        raise ValueError("an unknown way of pooling")
    if own.get("rope.scaling.type", "none") != "none":
        raise ValueError("rope.scaling.type is not none")
    if not 0 <= own.get("attention.sliding_window", 0) < 2**30:
        raise ValueError("attention.sliding_window is out of bounds")
    if own.get("attention.sliding_window_pattern", layers) != layers:
        raise ValueError("attention.sliding_window_pattern does not list every layer")
    if not 1 <= keys.get("tokenizer.ggml.token_type_count", 1) <= 1024:
        raise ValueError("tokenizer.ggml.token_type_count is out of bounds")


def _count(own: Mapping[str, Any], name: str, most: int) -> int:
    value = own.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {most}")
    return value
