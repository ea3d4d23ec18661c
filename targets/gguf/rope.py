"""Rotary positions: what config.json says of them -> a graph's keys and tables of factors.

llama.cpp divides each pair's angle by a factor of its own (`rope_freqs`, `rope_factors_*`), scales
all angles (linear), or blends both by the pair's wavelength (yarn). The formulas are those of
transformers' modeling_rope_utils; where llama.cpp cannot follow them, the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.plan import Config

_PLAIN = ("default", "dynamic")  # dynamic scaling begins past the positions that the config states
_KIND, _ORIGINAL = "rope_type", "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


@dataclass(frozen=True)
class Rope:
    """What the plan takes over."""

    keys: dict[str, Any] = field(default_factory=dict[str, Any])
    tables: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])


def rope_settings(config: Config, theta: float, layers: str | None = None) -> Config:
    """The settings of all layers, or of the kind `layers`, in today's form.

    Older configs keep rope_theta and rope_scaling at the top, with `type` for `rope_type`."""
    stated = config.get("rope_scaling", None) or config.get("rope_parameters", {})
    if not isinstance(stated, dict):
        raise ModelError(f"config.json: the rope settings are {stated!r}, not a mapping")
    if layers is not None and layers in stated:
        stated = stated[layers] or {}
    found: dict[str, Any] = {"rope_theta": config.get("rope_theta", theta)}
    if config.get(_PARTIAL, None) is not None:
        found[_PARTIAL] = config.values[_PARTIAL]
    found |= {key: value for key, value in stated.items() if value is not None}
    found.setdefault(_KIND, found.pop("type", "default"))
    if found[_KIND] == "su":
        found[_KIND] = "longrope"
    original = config.get(_ORIGINAL, None)  # Phi-3 states it at the top, where it comes first
    found[_ORIGINAL] = original or found.get(_ORIGINAL) or config.count("max_position_embeddings")
    return Config(found)


def rotated(settings: Config, head_dim: int) -> int:
    """How many of a head's values turn with the position."""
    n_rot = int(head_dim * settings.number(_PARTIAL, 1.0))
    if n_rot < 2 or n_rot % 2:
        raise settings.refusal(_PARTIAL, settings.get(_PARTIAL, 1.0), f"{n_rot} values do not pair")
    return n_rot


def plan_rope(
    config: Config, settings: Config, n_rot: int, kinds: tuple[str, ...], max_tokens: int
) -> Rope:
    """Keys and tables for a graph that computes `kinds` of scaling. Raises ModelError."""
    kind = settings.require(
        _KIND, "default", (*_PLAIN, *kinds), "llama.cpp's graph for this model lacks it"
    )
    theta = settings.number("rope_theta", None)
    base: dict[str, Any] = {"rope.freq_base": theta}
    if kind in _PLAIN:
        return Rope(base)
    if kind == "linear":
        scale = {"rope.scaling.type": "linear", "rope.scaling.factor": _factor(settings)}
        return Rope(base | scale)
    if kind == "llama3":  # the original length is for who reads the file; the table says it all
        base["rope.scaling.original_context_length"] = settings.count(_ORIGINAL)
        return Rope(base, {"rope_freqs.weight": _llama3(settings, theta, n_rot)})
    if kind == "yarn":
        return Rope(base | _yarn(settings))
    return _longrope(config, settings, base, n_rot, max_tokens)


def _factor(settings: Config) -> float:
    factor = settings.number("factor", None)
    if not 0 < factor < math.inf:
        raise settings.refusal("factor", factor, "it must be above 0")
    return factor


def _llama3(settings: Config, theta: float, n_rot: int) -> NDArray[np.float32]:
    """Factors (n_rot / 2,): 1 for short waves, `factor` for long ones, a blend between."""
    low, high = (settings.number(f"{end}_freq_factor", None) for end in ("low", "high"))
    original = settings.number(_ORIGINAL, None)
    wave = 2 * math.pi * theta ** (np.arange(0, n_rot, 2) / n_rot)
    factor = _factor(settings)
    share = np.clip((original / wave - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - share) / factor + share), dtype=np.float32)


def _yarn(settings: Config) -> dict[str, Any]:
    why = "llama.cpp's graph for this model takes the usual value only"
    settings.require("beta_fast", 32, (32,), why)
    settings.require("beta_slow", 1, (1,), why)
    settings.require("truncate", True, (True,), why)
    factor = _factor(settings)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": settings.count(_ORIGINAL),
    }
    usual = _magnitude(factor, 1.0)
    stated = settings.get("attention_factor", None)
    mscale, over_all = (settings.get(k, None) for k in ("mscale", "mscale_all_dim"))
    if stated is None and mscale and over_all:
        stated = _magnitude(factor, float(mscale)) / _magnitude(factor, float(over_all))
    if stated is not None and stated != usual:  # llama.cpp computes the usual one itself
        keys["rope.scaling.attn_factor"] = float(stated) / usual
    return keys


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(
    config: Config, settings: Config, base: Mapping[str, Any], n_rot: int, max_tokens: int
) -> Rope:
    """llama.cpp takes the long factors when the context it is opened with is over the original
    one, transformers when the text is. A model that shall never see such texts gets the short ones
    in both places, so that a context shared by many sequences changes nothing."""
    original = settings.count(_ORIGINAL)
    short, long = (_factors(settings, key, n_rot) for key in ("short_factor", "long_factor"))
    if max_tokens <= original:
        long = short
    stated = settings.get("factor", None)
    factor = float(stated or config.count("max_position_embeddings") / original)
    attention = settings.get("attention_factor", None)
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    keys = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }
    tables = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    return Rope({**base, **keys}, tables)


def _factors(settings: Config, key: str, n_rot: int) -> NDArray[np.float32]:
    value = settings.get(key, None)
    numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
    if not numbers or len(value) != n_rot // 2 or min(value) <= 0:
        raise ModelError(f"config.json: {key}: {n_rot // 2} numbers above 0 are needed")
    return np.asarray(value, dtype=np.float32)
