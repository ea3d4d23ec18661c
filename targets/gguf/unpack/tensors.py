"""model.safetensors out of a file's tensors, one in memory at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.targets.gguf.llama import layer_moves
from edgelm.targets.gguf.plan import Move
from edgelm.targets.gguf.unpack.file import File
from edgelm.targets.gguf.writer import interleave

# that config.json tells of
_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_F32, _F16, _BF16 = 0, 1, 30
_STORED = {_F32: ("F32", 4), _F16: ("F16", 2), _BF16: ("BF16", 2)}  # else float32


def write_tensors(file: File, folder: Path, report: Callable[[int, int], None]) -> None:
    """Write every tensor under its name in transformers. Raises ValueError for unknown ones."""
    moves = _moves(file)
    unknown = file.tensors.keys() - moves.keys() - set(_TABLES)
    if unknown:
        raise ValueError(f"the tensor {min(unknown)} is not known in {file.graph.arch!r}")
    names = [name for name in file.tensors if name in moves]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = file.tensors[name]
        shape = [int(n) for n in reversed(tensor.shape)]
        kind, item = _STORED.get(int(tensor.tensor_type), _STORED[_F32])
        end = at + prod(shape) * item
        header[moves[name].source] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for i, name in enumerate(names):
            values = _restored(_values(file, name), moves[name])
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"the tensor {name} holds values that are not finite")
            np.ascontiguousarray(values).tofile(stream)
            report(i + 1, len(names))


def _moves(file: File) -> dict[str, Move]:
    """By the names in the file, every tensor that the graph may hold."""
    keys, graph = file.keys, file.graph
    n = int(keys["attention.head_count"])
    n_kv = int(keys.get("attention.head_count_kv", n))
    moves = [
        Move("token_embd.weight", "model.embed_tokens.weight"),
        Move("output_norm.weight", "model.norm.weight", shift=graph.norm_shift),
        Move("output.weight", "lm_head.weight"),
    ]
    for i in range(int(keys["block_count"])):
        moves += layer_moves(graph, n, n_kv, f"model.layers.{i}.", f"blk.{i}.")
    return {move.name: move for move in moves}


def _values(file: File, name: str) -> NDArray[Any]:
    """Rows of float32, float16, or bfloat16 as uint16."""
    from gguf import dequantize

    tensor = file.tensors[name]
    shape = tuple(int(n) for n in reversed(tensor.shape))
    kind = int(tensor.tensor_type)
    if kind in (_F32, _F16):
        return np.asarray(tensor.data).reshape(shape)
    if kind == _BF16:
        return np.asarray(tensor.data).reshape(-1).view("<u2").reshape(shape)
    return dequantize(tensor.data, tensor.tensor_type).astype("<f4").reshape(shape)


def _restored(values: NDArray[Any], move: Move) -> NDArray[Any]:
    if move.shift:
        values = values - np.asarray(move.shift, values.dtype)
    if not move.n_heads:
        return values
    head_rows = len(values) // move.n_heads
    order = np.argsort(interleave(np.arange(len(values)), head_rows))
    return values[order]
