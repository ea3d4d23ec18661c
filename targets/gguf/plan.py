"""A family's answer: which llama.cpp graph holds the checkpoint, and which tensor goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.head import Head

PoolingMode = Literal["mean", "cls", "last", "rank"]
# llama.cpp's numbers of the ways of pooling
POOLING_TYPES: dict[str, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}


@dataclass(frozen=True)
class Move:
    """One tensor's way from the checkpoint into the file."""

    name: str  # in the file
    source: str  # in the checkpoint
    is_matrix: bool = False  # quantized or halved; everything else stays float32
    skip_rows: int = 0  # leading rows left behind
    n_heads: int = 0  # not 0: the rows of each head are laid out for rope over neighbours
    shift: float = 0.0  # added to every value
    rows: int = 0  # not 0: so many rows, those that the checkpoint lacks are zeros
    columns: int = 0  # the same of columns


@dataclass(frozen=True)
class Plan:
    """Everything the writer needs to know of one model. The first move is the token table."""

    arch: str
    pooling: PoolingMode | None  # None for generation
    context_length: int
    n_token_types: int
    keys: dict[str, Any]  # the graph's own keys, its name left off
    moves: tuple[Move, ...]
    head: Head | None = None  # when the graph cannot hold the classification head
    # vectors that the checkpoint does not hold, by their name in the file
    tables: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
    causal: bool = False  # a decoder: each token sees itself and those before it only
    context_ends: str = "the model's positions end at"  # why the context is no longer


@dataclass(frozen=True)
class Config:
    """config.json with errors that name the key."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number >= 1."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {key} is {value!r}, not a whole number >= 1")
        return value

    def number(self, key: str, default: float | None) -> float:
        """A float; the default is the one of the model's class in transformers."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(f"config.json: {key} is {value!r}, not a number")
        return float(value)

    def get(self, key: str, default: Any) -> Any:
        """Any value; a stated null counts as not stated."""
        value = self.values.get(key)
        return default if value is None else value

    def require(self, key: str, default: Any, allowed: tuple[Any, ...], why: str) -> Any:
        """The value when it is one that the graph computes, else ModelError."""
        value = self.get(key, default)
        if value not in allowed:
            raise self.refusal(key, value, f"{why} (it computes {_either(allowed)})")
        return value

    def refusal(self, key: str, value: object, why: str) -> ModelError:
        """The error for a trait that cannot be translated."""
        return ModelError(
            f"config.json: {key} is {value!r}; {why}",
            hint="choose another target for this model, such as onnx",
        )


def _either(allowed: tuple[Any, ...]) -> str:
    return " or ".join(repr(a) for a in allowed)
