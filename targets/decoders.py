"""Decoders that can lose parts: whole layers, groups of heads, columns of the feed-forward.

A group is a head of keys and values with the heads of queries that look through it. What is left
is a plain model of its family: config.json states the layers, heads and columns that there are,
and the size of a head, which they no longer make up.

Letters: D values of a head, F columns of the feed-forward.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.targets.encoders import Names

_LAYER = re.compile(r"(.*\blayers\.)(\d+)\.(.+)\.(weight|bias)")
_PARTS = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
_KEYS = ("num_hidden_layers", "num_key_value_heads", "hidden_size", "intermediate_size")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3")
FIXED_LAYERS = ("smollm3",)  # which layers have positions is told by their numbers
NAMES = {family: Names("model.", "layers.{i}.", _PARTS, *_KEYS) for family in FAMILIES}


@dataclass(frozen=True)
class Kept:
    """What a cut leaves of a model; None is all. Numbers are those of the whole model, rising."""

    layers: Sequence[int] | None = None
    groups: Sequence[Sequence[int]] | None = None  # of each of its layers
    columns: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class _Heads:
    n: int
    n_kv: int
    size: int


def cut(model: Any, kept: Kept) -> Any:
    """A new model with what is kept of this one, in the same mode. Raises ModelError where the
    family's config cannot say so."""
    config = model.config
    small = cut_config(
        config,
        layers=kept.layers,
        n_groups=None if kept.groups is None else len(kept.groups[0]),
        n_columns=None if kept.columns is None else len(kept.columns[0]),
    )
    layers = range(config.num_hidden_layers) if kept.layers is None else kept.layers
    places = {layer: i for i, layer in enumerate(layers)}
    heads = _heads_of(config)
    weights: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            weights[name] = weight
            continue
        before, number, part, kind = found[1], int(found[2]), found[3], found[4]
        if number not in places:
            continue
        groups = None if kept.groups is None else kept.groups[number]
        columns = None if kept.columns is None else kept.columns[number]
        rows, inputs = _lines(part, heads, groups, config.intermediate_size, columns)
        if rows is not None:
            weight = weight[rows]
        if inputs is not None and kind == "weight":
            weight = weight[:, inputs]
        weights[f"{before}{places[number]}.{part}.{kind}"] = weight
    new = type(model)(small)
    new.load_state_dict(weights)
    new.generation_config = model.generation_config
    return new.train(model.training)


def cut_config(
    config: Any,
    *,
    layers: Sequence[int] | None = None,
    n_groups: int | None = None,
    n_columns: int | None = None,
) -> Any:
    """A copy of the config for what a cut leaves. Raises ModelError where the family takes no such
    numbers."""
    from huggingface_hub.errors import StrictDataclassError

    new = copy.deepcopy(config)
    heads = _heads_of(config)
    if layers is not None:
        new.num_hidden_layers = len(layers)
        kinds = getattr(config, "layer_types", None)
        if kinds is not None:
            new.layer_types = [kinds[i] for i in layers]
    if n_groups is not None:
        new.head_dim = heads.size
        new.num_key_value_heads = n_groups
        new.num_attention_heads = n_groups * (heads.n // heads.n_kv)
    if n_columns is not None:
        new.intermediate_size = n_columns
    try:
        return type(config).from_dict(new.to_dict())
    except (StrictDataclassError, ValueError) as err:
        each, width = heads.n // heads.n_kv, int(config.hidden_size)
        fit = [str(n) for n in range(1, heads.n_kv) if width % (n * each) == 0]
        raise ModelError(
            f"what is left is no {config.model_type} model: {' '.join(str(err).split())}",
            hint=f"of the {heads.n_kv} groups {' or '.join(fit)} may be left (prune.heads)",
        ) from err


def _heads_of(config: Any) -> _Heads:
    n = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // n
    return _Heads(n, int(config.num_key_value_heads), int(size))


def _lines(
    part: str,
    heads: _Heads,
    groups: Sequence[int] | None,
    width: int,
    columns: Sequence[int] | None,
) -> tuple[list[int] | None, list[int] | None]:
    """Outputs (rows of the weight) and inputs that a layer's matrix is left with; None is all."""
    rows: list[int] | None = None
    inputs: list[int] | None = None
    if groups is not None:
        queries = _runs(groups, heads.n // heads.n_kv * heads.size)
        keys = _runs(groups, heads.size)
        rows = {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": keys,
            "self_attn.qkv_proj": [
                *queries,
                *_moved(keys, heads.n * heads.size),
                *_moved(keys, (heads.n + heads.n_kv) * heads.size),
            ],
        }.get(part)
        inputs = queries if part == "self_attn.o_proj" else None
    if columns is not None and part.startswith("mlp."):
        rows = {
            "mlp.gate_proj": list(columns),
            "mlp.up_proj": list(columns),
            "mlp.gate_up_proj": [*columns, *_moved(columns, width)],
        }.get(part)
        inputs = list(columns) if part == "mlp.down_proj" else None
    return rows, inputs


def _runs(numbers: Iterable[int], size: int) -> list[int]:
    return [number * size + d for number in numbers for d in range(size)]


def _moved(places: Iterable[int], by: int) -> list[int]:
    return [place + by for place in places]
