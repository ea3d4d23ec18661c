"""The checkpoint's tensors, one at a time: `model.safetensors`, whole or in shards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import MissingExtra, ModelError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Checkpoints of the first BERT releases name a norm's two vectors so.
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}


class Weights:
    """A read-only mapping from parameter name to array; `prefix` is left off every name."""

    def __init__(self, folder: Path) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as err:
            raise MissingExtra("safetensors", "compile") from err
        self._stack = ExitStack()
        self._files: dict[str, tuple[Path, Any, str]] = {}  # name -> (file, reader, stored name)
        self._open = safe_open
        try:
            for path in _shards(folder):
                reader = self._stack.enter_context(safe_open(path, framework="np"))
                for stored in list(reader.keys()):
                    self._files[_modern(stored)] = (path, reader, stored)
        except (SafetensorError, OSError) as err:
            self._stack.close()
            raise ModelError(f"{folder}: its weights cannot be read: {err}") from err

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the values."""
        _, reader, stored = self._entry(name)
        return tuple(reader.get_slice(stored).get_shape())

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
        path, reader, stored = self._entry(name)
        dtype = str(reader.get_slice(stored).get_dtype())
        if dtype == "BF16":  # numpy has no such type; the compile extra brings torch
            with self._open(path, framework="pt") as tensors:
                return tensors.get_tensor(stored).float().numpy()
        if dtype not in ("F32", "F16", "F64"):
            raise ModelError(f"{name} is stored as {dtype}; the weights must be floats, merged")
        return np.asarray(reader.get_tensor(stored), dtype=np.float32)

    def _entry(self, name: str) -> tuple[Path, Any, str]:
        if name not in self._files:
            near = sorted(n for n in self._files if n.split(".")[-2:] == name.split(".")[-2:])[:3]
            raise ModelError(
                f"the checkpoint has no {name}" + (f"; it has {', '.join(near)}" if near else "")
            )
        return self._files[name]


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name[: -len(old)] + new
    return name


def _shards(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not (folder / _INDEX).is_file():
        raise ModelError(f"{folder}: it holds no {_WHOLE}")
    try:
        names = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as err:
        raise ModelError(f"{folder / _INDEX}: not a weight index") from err
    return [folder / str(name) for name in sorted(names)]
