"""A classification head computed in numpy, for heads that llama.cpp's graph cannot hold.

The file is plain safetensors, all float32; the activation's name is in its metadata.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import parse_json

Array = NDArray[np.float32]
_MAX_HEADER_BYTES = 2**16
_MAX_BYTES = 2**26
_erf = np.vectorize(math.erf, otypes=[np.float32])  # numpy has none; a head sees B x H values


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))), dtype=np.float32)


def _gelu_tanh(x: Array) -> Array:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1.0 + np.tanh(inner)), dtype=np.float32)


def _silu(x: Array) -> Array:
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -80, 80))), dtype=np.float32)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": lambda x: np.tanh(x),
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": _silu,
}


@dataclass(frozen=True)
class Head:
    """pooled (B, H) -> dense (H, H) -> activation -> norm, if any -> out (C, H) -> (B, C)."""

    dense_weight: Array
    dense_bias: Array | None
    activation: str
    norm_weight: Array | None
    norm_eps: float
    out_weight: Array
    out_bias: Array

    def __call__(self, pooled: Array) -> Array:
        """Logits of the pooled vectors."""
        x = pooled @ self.dense_weight.T
        if self.dense_bias is not None:
            x = x + self.dense_bias
        x = ACTIVATIONS[self.activation](x)
        if self.norm_weight is not None:
            centred = x - x.mean(axis=-1, keepdims=True)
            spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.norm_eps)
            x = centred / spread * self.norm_weight
        return np.asarray(x @ self.out_weight.T + self.out_bias, dtype=np.float32)

    def _arrays(self) -> dict[str, Array]:
        arrays = {
            "dense.weight": self.dense_weight,
            "dense.bias": self.dense_bias,
            "norm.weight": self.norm_weight,
            "out.weight": self.out_weight,
            "out.bias": self.out_bias,
        }
        return {k: np.ascontiguousarray(v, dtype="<f4") for k, v in arrays.items() if v is not None}

    def save(self, path: Path) -> None:
        """Write the file; equal heads give equal bytes."""
        header: dict[str, Any] = {
            "__metadata__": {"activation": self.activation, "norm_eps": repr(self.norm_eps)}
        }
        at, blobs = 0, []
        for name, array in self._arrays().items():
            end = at + array.nbytes
            header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, end]}
            blobs.append(array.tobytes())
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load_head(path: Path, n_embd: int) -> Head:
    """Read a head over vectors of H = `n_embd`. Raises BundleError."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err}") from err
    if len(raw) > _MAX_BYTES:
        raise BundleError(f"{path}: larger than {_MAX_BYTES} bytes")
    (n,) = struct.unpack("<Q", raw[:8]) if len(raw) >= 8 else (0,)
    if not 2 <= n <= min(_MAX_HEADER_BYTES, len(raw) - 8):
        raise BundleError(f"{path}: not a head file")
    header, body = parse_json(raw[8 : 8 + n], str(path)), raw[8 + n :]
    try:
        meta = header.pop("__metadata__")
        _check_offsets([entry["data_offsets"] for entry in header.values()], len(body))
        arrays = {name: _array(entry, body) for name, entry in header.items()}
        head = Head(
            arrays["dense.weight"],
            arrays.get("dense.bias"),
            meta["activation"],
            arrays.get("norm.weight"),
            float(meta["norm_eps"]),
            arrays["out.weight"],
            arrays["out.bias"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise BundleError(f"{path}: not a head file: {err!r}") from err
    _check(head, n_embd, path)
    return head


def _check_offsets(offsets: list[Any], n_bytes: int) -> None:
    """The tensors lie one behind the other, and fill the file."""
    if any(type(at) is not int for pair in offsets for at in pair):
        raise ValueError("an offset that is not a whole number")
    at = 0
    for begin, end in sorted(offsets):
        if begin != at or end < begin:
            raise ValueError("tensors with a gap between them, or in each other's place")
        at = end
    if at != n_bytes:
        raise ValueError("bytes behind the last tensor, or a tensor outside the file")


def _array(entry: Any, body: bytes) -> Array:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if entry["dtype"] != "F32" or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("a tensor that is not float32, or of an odd shape")
    return np.frombuffer(body[begin:end], dtype="<f4").reshape(shape).astype(np.float32)


def _check(head: Head, H: int, path: Path) -> None:
    wide = [v for v in (head.dense_bias, head.norm_weight) if v is not None]
    fits = (
        head.dense_weight.shape == (H, H)
        and all(v.shape == (H,) for v in wide)
        and head.out_weight.ndim == 2
        and head.out_weight.shape[1] == H
        and head.out_bias.shape == head.out_weight.shape[:1]
    )
    if not fits or str(head.activation) not in ACTIVATIONS:
        raise BundleError(f"{path}: its shapes or its activation do not fit the model")
