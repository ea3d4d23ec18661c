"""Write a plan's GGUF file, a block of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import MissingExtra
from edgelm.runtime.manifest import Task
from edgelm.targets.gguf.floats import FLOATS, convert, to_float32
from edgelm.targets.gguf.plan import POOLING_TYPES, Move, Plan
from edgelm.targets.gguf.precisions import FLOAT_FILE_TYPES
from edgelm.targets.gguf.vocab import Vocab
from edgelm.targets.gguf.weights import Weights


def write_gguf(
    path: Path, plan: Plan, weights: Weights, vocab: Vocab, task: Task, name: str, precision: str
) -> None:
    """Write `path` in f32, f16 or bf16. Raises ModelError, MissingExtra."""
    try:
        import gguf
    except ImportError as err:
        raise MissingExtra("gguf", "compile") from err
    kind = gguf.GGMLQuantizationType
    kinds = {"f32": kind.F32, "f16": kind.F16, "bf16": kind.BF16}
    writer = gguf.GGUFWriter(path, plan.arch)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(FLOAT_FILE_TYPES[precision])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_graph(writer, plan, task)
        n_rows = _shape(weights, plan.moves[0])[0]
        _add_vocab(writer, plan, vocab, n_rows)
        tensors = [
            (m.name, _shape(weights, m), precision if m.is_matrix else "f32") for m in plan.moves
        ]
        tensors += [(table, values.shape, "f32") for table, values in plan.tables.items()]
        for tensor, shape, floats in tensors:
            dtype = FLOATS[floats]
            n_bytes = prod(shape) * dtype.itemsize
            writer.add_tensor_info(tensor, shape, dtype, n_bytes, raw_dtype=kinds[floats])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for move in plan.moves:
            _write_tensor(writer, _blocks(weights, move, precision if move.is_matrix else "f32"))
        for values in plan.tables.values():
            _write_tensor(writer, iter([values.astype(FLOATS["f32"])]))
    finally:
        writer.close()


def _shape(weights: Weights, move: Move) -> tuple[int, ...]:
    rows, *rest = weights.shape(move.source)
    if move.columns:
        rest[-1] = move.columns
    return (move.rows or rows - move.skip_rows, *rest)


def _write_tensor(writer: Any, blocks: Iterator[NDArray[Any]]) -> None:
    """As the writer's own `write_tensor_data`, which wants the whole tensor in memory."""
    stream = writer.fout[0]
    writer.write_padding(stream, stream.tell())
    for block in blocks:
        block.tofile(stream)
    writer.write_padding(stream, stream.tell())


def _blocks(weights: Weights, move: Move, precision: str) -> Iterator[NDArray[Any]]:
    head_rows = weights.shape(move.source)[0] // move.n_heads if move.n_heads else 1
    for block in weights.blocks(move.source, move.skip_rows, head_rows):
        if move.n_heads:
            block = interleave(block, head_rows)
        if move.shift:
            block = to_float32(block) + np.float32(move.shift)
        if move.columns:
            block = np.pad(block, ((0, 0), (0, move.columns - block.shape[1])))
        yield np.ascontiguousarray(convert(block, precision, move.source))
    _, *rest = shape = _shape(weights, move)
    missing = shape[0] - (weights.shape(move.source)[0] - move.skip_rows)
    if missing:
        yield np.zeros((missing, *rest), FLOATS[precision])


def interleave(rows: NDArray[Any], head_rows: int) -> NDArray[Any]:
    """Rows of query or key heads, laid out for llama.cpp's rope of the kind NORM.

    transformers turns row i of a head together with row i + head_rows / 2; NORM turns neighbours,
    so rows 0 1 2 3 become 0 2 1 3. Query and key change alike, so their products stay."""
    R = len(rows)
    halves = rows.reshape(R // head_rows, 2, head_rows // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_graph(writer: Any, plan: Plan, task: Task) -> None:
    own: dict[str, Any] = {**plan.keys, "context_length": plan.context_length}
    if not plan.causal:
        own["attention.causal"] = False
    if plan.pooling is not None:
        own["pooling_type"] = POOLING_TYPES[plan.pooling]
    if task.kind == "text-classification":
        own["classifier.output_labels"] = list(task.labels)
    for key, value in own.items():
        _add(writer, f"{plan.arch}.{key}", value)


def _add_vocab(writer: Any, plan: Plan, vocab: Vocab, n_rows: int) -> None:
    _add(writer, "tokenizer.ggml.model", vocab.model)
    if not plan.causal:
        _add(writer, "tokenizer.ggml.token_type_count", plan.n_token_types)
    if vocab.chat_template is not None:
        _add(writer, "tokenizer.chat_template", vocab.chat_template)
    if vocab.model == "none" or plan.causal:
        _add(writer, f"{plan.arch}.vocab_size", n_rows)
    if vocab.model == "none":
        return
    for key, value in vocab.keys.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    _add(writer, "tokenizer.ggml.tokens", vocab.tokens)
    _add(writer, "tokenizer.ggml.token_type", vocab.types)
    if vocab.scores is not None:
        _add(writer, "tokenizer.ggml.scores", vocab.scores)
    if vocab.merges is not None:
        _add(writer, "tokenizer.ggml.merges", vocab.merges)


def _add(writer: Any, key: str, value: Any) -> None:
    """Python's type decides the file's: whole numbers are uint32, lists of them int32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # the format has no empty arrays
        writer.add_array(key, value)
