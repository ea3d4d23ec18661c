"""What a checked GGUF header says of the model, and the rules llama.cpp aborts on when broken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf.check import Array, Header
from edgelm.targets.gguf.plan import POOLING_TYPES

MAX_LAYERS = 512  # llama.cpp's own bound
MAX_CONTEXT = 2**20

_COUNTS = ("context_length", "embedding_length", "block_count", "feed_forward_length")
_HEADS, _KV_HEADS = "attention.head_count", "attention.head_count_kv"
_EPS, _RMS_EPS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
_KEY, _VALUE, _ROPE = "attention.key_length", "attention.value_length", "rope.dimension_count"
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_SCALING = "rope.scaling.type"
_POOLING = "pooling_type"
_ENCODER = (*_COUNTS, _HEADS, _EPS, "attention.causal", _POOLING, "classifier.output_labels")
_DECODER = (
    *_COUNTS,
    _HEADS,
    _KV_HEADS,
    _KEY,
    _VALUE,
    _RMS_EPS,
    _ROPE,
    "rope.freq_base",
    _SCALING,
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "vocab_size",
    _POOLING,
)
# Keys of each graph, without the graph's name before them. A file with others is not ours, and
# some of those (expert counts) end the process when they do not fit.
ENCODER_KEYS: dict[str, tuple[str, ...]] = {
    "bert": (*_ENCODER, "vocab_size"),
    "modern-bert": (
        *_ENCODER,
        "vocab_size",
        "classifier.pooling_type",
        "hidden_activation",
        _WINDOW,
        _PATTERN,
        "rope.freq_base",
        "rope.freq_base_swa",
        _SCALING,
    ),
}
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
DECODER_KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "smollm3", "qwen2", "qwen3"), _DECODER),
    "phi3": (*_DECODER, _WINDOW),  # which llama.cpp reads and does not use
    "gemma2": (*_DECODER, _WINDOW, _PATTERN, *_SOFT_CAPS),
    "gemma3": (*_DECODER, _WINDOW, _PATTERN, "rope.freq_base_swa", "final_logit_softcapping"),
}
KNOWN_KEYS = ENCODER_KEYS | DECODER_KEYS
DECODER_POOLING = (0, POOLING_TYPES["mean"], POOLING_TYPES["last"])  # 0 is none
# Numbers that are above 0 where they are stated
_POSITIVE = (
    _EPS,
    _RMS_EPS,
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    *_SOFT_CAPS,
)
_WHOLE = {"vocab_size": 2**31 - 1, "rope.scaling.original_context_length": 2**31 - 1}


@dataclass(frozen=True)
class Facts:
    """What an engine needs to know."""

    arch: str
    n_vocab: int  # V
    n_embd: int  # H
    context_length: int

    @property
    def causal(self) -> bool:
        """Whether each token sees itself and those before it only."""
        return self.arch in DECODER_KEYS


def bits_per_weight(header: Header) -> float:
    """Of all tensors together, as llama.cpp counts it: what the file spends on a weight."""
    n_bytes = sum(tensor.n_bytes for tensor in header.tensors.values())
    return 8 * n_bytes / sum(math.prod(tensor.shape) for tensor in header.tensors.values())


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
    context = _count(own, "context_length", MAX_CONTEXT)
    _count(own, "feed_forward_length", 2**24)
    for name in _POSITIVE:
        value = own.get(name, 1.0)
        if not isinstance(value, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r}, not a positive number")
    for name in _WHOLE.keys() & own.keys():
        _count(own, name, _WHOLE[name])
    _check_windows(own, layers)
    if arch in ENCODER_KEYS:
        _check_encoder(own, keys, width)
    else:
        _check_decoder(own, arch, width)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[1] != width:
        raise ValueError("token_embd.weight is missing or not of the stated width")
    if own.get("vocab_size", table.shape[0]) != table.shape[0]:
        raise ValueError("vocab_size is not the number of rows of token_embd.weight")
    return Facts(arch, table.shape[0], width, context)


def _check_windows(own: Mapping[str, Any], layers: int) -> None:
    window = own.get(_WINDOW, 0)
    if not isinstance(window, int) or not 0 <= window < 2**30:
        raise ValueError(f"{_WINDOW} is out of bounds")
    if own.get(_PATTERN, Array(layers)) != Array(layers):
        raise ValueError(f"{_PATTERN} does not list every layer")


def _check_encoder(own: Mapping[str, Any], keys: Mapping[str, Any], width: int) -> None:
    heads = _count(own, _HEADS, 2**12)
    if width % heads or width // heads % 2:
        raise ValueError(f"{width} values do not split evenly over {heads} heads")
    if own.get("attention.causal") is not False:
        raise ValueError("attention.causal is not false; edgelm's encoders look both ways")
    if own.get(_POOLING) not in range(5) or own.get("classifier.pooling_type", 1) not in (
        1,
        2,
    ):
        raise ValueError("an unknown way of pooling")
    if own.get(_SCALING, "none") != "none":
        raise ValueError(f"{_SCALING} is not none")
    if not 1 <= keys.get("tokenizer.ggml.token_type_count", 1) <= 1024:
        raise ValueError("tokenizer.ggml.token_type_count is out of bounds")


def _check_decoder(own: Mapping[str, Any], arch: str, width: int) -> None:
    heads = _count(own, _HEADS, 2**12)
    kv_heads = _count(own, _KV_HEADS, heads) if _KV_HEADS in own else heads
    if heads % kv_heads:
        raise ValueError(f"{heads} heads do not split evenly over {kv_heads} of keys and values")
    if _KEY not in own and width % heads:
        raise ValueError(f"{width} values do not split evenly over {heads} heads")
    size = _count(own, _KEY, 2**12) if _KEY in own else width // heads
    n_rot = _count(own, _ROPE, size) if _ROPE in own else size
    if size % 2 or n_rot % 2 or own.get(_VALUE, size) != size:
        raise ValueError(f"heads of {size} values, of which {n_rot} turn with the position")
    if n_rot != size and arch != "phi3":
        raise ValueError(f"{_ROPE} is {n_rot}, the graph turns all {size} values of a head")
    if own.get(_POOLING, 0) not in DECODER_POOLING:
        raise ValueError(f"{_POOLING} is {own[_POOLING]!r}, none of {DECODER_POOLING}")
    if own.get(_SCALING, "none") not in ("none", "linear", "yarn", "longrope"):
        raise ValueError(f"{_SCALING} is {own[_SCALING]!r}, which is not known")


def _count(own: Mapping[str, Any], name: str, most: int) -> int:
    value = own.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {most}")
    return value
