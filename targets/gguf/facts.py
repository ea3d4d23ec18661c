"""What a checked GGUF header says of the model, and the rules llama.cpp aborts on when broken.

Graphs that edgelm writes and others are held to the same rules; beside its own keys one of the
others may have none that could mean something to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf.check import Array, Header
from edgelm.targets.gguf.keys import (
    ALL_KEYS,
    CAUSAL,
    COUNTS,
    DECODER_POOLING,
    DECODERS,
    ENCODERS,
    EXPERTS,
    EXPERTS_USED,
    FLAGS,
    HEADS,
    KEY,
    KV_HEADS,
    NEEDED,
    NUMBERS,
    OF_ENCODERS,
    OTHER_DECODERS,
    OTHER_ENCODERS,
    PATTERN,
    POOLING,
    PREFIXES,
    ROPE,
    SCALING,
    SCALINGS,
    TURNS_PART,
    VALUE,
)

_TYPES = "tokenizer.ggml.token_type_count"


@dataclass(frozen=True)
class Facts:
    """What an engine needs to know."""

    arch: str
    n_vocab: int  # V
    n_embd: int  # H
    context_length: int
    is_encoder: bool  # tokens see those behind them; there are no logits
    n_token_types: int  # rows of the table of token types; 0 without one


def bits_per_weight(header: Header) -> float:
    """Of all tensors together, as llama.cpp counts it: what the file spends on a weight."""
    n_bytes = sum(tensor.n_bytes for tensor in header.tensors.values())
    return 8 * n_bytes / sum(math.prod(tensor.shape) for tensor in header.tensors.values())


def own_keys(header: Header) -> dict[str, Any]:
    """The graph's keys, its name left off."""
    prefix = f"{header.keys.get('general.architecture')}."
    return {k[len(prefix) :]: v for k, v in header.keys.items() if k.startswith(prefix)}


def read_facts(header: Header, path: Path) -> Facts:
    """Check the graph's keys and give its sizes. Raises BundleError."""
    try:
        return _facts(header)
    except ValueError as err:
        raise BundleError(f"{path}: not a usable GGUF file: {err}") from err


def _facts(header: Header) -> Facts:
    keys = header.keys
    arch = keys.get("general.architecture")
    if not isinstance(arch, str) or arch not in ENCODERS | DECODERS:
        raise ValueError(f"the graph {arch!r}, known are {', '.join(sorted(ENCODERS | DECODERS))}")
    own = own_keys(header)
    unknown = own.keys() - ALL_KEYS
    if arch in OTHER_ENCODERS | OTHER_DECODERS:
        unknown |= {k for k in keys if not k.startswith((f"{arch}.", *PREFIXES))}
    unknown |= {k for k in keys if k.startswith("split.")}
    if unknown:
        raise ValueError(f"the keys {', '.join(sorted(unknown))} are not known here")
    _check_values(own)
    is_encoder = arch in ENCODERS
    width = own["embedding_length"]
    if is_encoder:
        _check_encoder(own, keys, width)
    else:
        _check_decoder(own, arch, width)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[1] != width:
        raise ValueError("token_embd.weight is missing or not of the stated width")
    if own.get("vocab_size", table.shape[0]) != table.shape[0]:
        raise ValueError("vocab_size is not the number of rows of token_embd.weight")
    types = header.tensors.get("token_types.weight")
    n_token_types = 0 if types is None else types.shape[0]
    return Facts(arch, table.shape[0], width, own["context_length"], is_encoder, n_token_types)


def _check_values(own: Mapping[str, Any]) -> None:
    for name in {*NEEDED, *(COUNTS.keys() & own.keys())}:
        _count(own, name, *COUNTS[name])
    for name in NUMBERS & own.keys():
        value = own[name]
        if not isinstance(value, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r}, not a number of 0 or more")
    for name in FLAGS & own.keys():
        if not isinstance(own[name], bool):
            raise ValueError(f"{name} is {own[name]!r}, neither true nor false")
    if own.get(SCALING, "none") not in SCALINGS:
        raise ValueError(f"{SCALING} is {own[SCALING]!r}, which is not known")
    if own.get(PATTERN, Array(own["block_count"])) != Array(own["block_count"]):
        raise ValueError(f"{PATTERN} does not list every layer")
    experts, used = own.get(EXPERTS, 0), own.get(EXPERTS_USED, 0)
    if used > experts or (used == 0) != (experts == 0):
        raise ValueError(f"{used} of {experts} experts are used")


def _check_encoder(own: Mapping[str, Any], keys: Mapping[str, Any], width: int) -> None:
    heads = own[HEADS]
    if width % heads or width // heads % 2:
        raise ValueError(f"{width} values do not split evenly over {heads} heads")
    if own.get(CAUSAL) is not False:
        raise ValueError(f"{CAUSAL} is not false; edgelm's encoders look both ways")
    if own.get(SCALING, "none") != "none":
        raise ValueError(f"{SCALING} is not none")
    if _TYPES in keys:
        _count(keys, _TYPES, 1, 1024)


def _check_decoder(own: Mapping[str, Any], arch: str, width: int) -> None:
    if own.get(CAUSAL, True) is not True or own.keys() & OF_ENCODERS:
        raise ValueError(f"the graph {arch!r} is a decoder's, and has keys of an encoder")
    if own.get(POOLING, 0) not in DECODER_POOLING:
        raise ValueError(f"{POOLING} is {own[POOLING]!r}, none of {DECODER_POOLING}")
    heads = own[HEADS]
    kv_heads = own.get(KV_HEADS, heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} heads do not split evenly over {kv_heads} of keys and values")
    if KEY not in own and width % heads:
        raise ValueError(f"{width} values do not split evenly over {heads} heads")
    size = own.get(KEY, width // heads)
    n_rot = own.get(ROPE, size)
    if size % 2 or n_rot % 2 or own.get(VALUE, size) != size:
        raise ValueError(f"heads of {size} values, of which {n_rot} turn with the position")
    if n_rot > size or (n_rot < size and arch not in TURNS_PART):
        raise ValueError(f"{ROPE} is {n_rot}, the graph turns all {size} values of a head")


def _count(own: Mapping[str, Any], name: str, least: int, most: int) -> None:
    value = own.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, not a whole number from {least} to {most}")
