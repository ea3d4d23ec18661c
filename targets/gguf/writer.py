"""Write a plan's GGUF file, one tensor in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgelm.runtime.errors import MissingExtra, ModelError
from edgelm.runtime.manifest import Task
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
    matrix_type = {"f32": kind.F32, "f16": kind.F16, "bf16": kind.BF16}[precision]
    writer = gguf.GGUFWriter(path, plan.arch)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(FLOAT_FILE_TYPES[precision])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_graph(writer, plan, task)
        n_rows = _shape(weights, plan.moves[0])[0]
        _add_vocab(writer, plan, vocab, n_rows)
        types = [matrix_type if move.is_matrix else kind.F32 for move in plan.moves]
        for move, tensor_type in zip(plan.moves, types, strict=True):
            shape = _shape(weights, move)
            n_bytes = int(np.prod(shape)) * (4 if tensor_type == kind.F32 else 2)
            dtype = np.dtype(np.float32 if tensor_type == kind.F32 else np.float16)
            writer.add_tensor_info(move.name, shape, dtype, n_bytes, raw_dtype=tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for move, tensor_type in zip(plan.moves, types, strict=True):
            values = weights.read(move.source)[move.skip_rows :]
            if not np.isfinite(values).all():
                raise ModelError(f"{move.source} holds values that are not finite")
            with np.errstate(over="raise"):
                try:
                    data = gguf.quants.quantize(np.ascontiguousarray(values), tensor_type)
                except FloatingPointError as err:
                    raise ModelError(
                        f"{move.source} holds values beyond float16's range",
                        hint="use the precision bf16 or f32",
                    ) from err
            writer.write_tensor_data(data)
    finally:
        writer.close()


def _shape(weights: Weights, move: Move) -> tuple[int, ...]:
    rows, *rest = weights.shape(move.source)
    return (rows - move.skip_rows, *rest)


def _add_graph(writer: Any, plan: Plan, task: Task) -> None:
    own: dict[str, Any] = {
        **plan.keys,
        "context_length": plan.context_length,
        "attention.causal": False,
        "pooling_type": POOLING_TYPES[plan.pooling],
    }
    if task.kind == "text-classification":
        own["classifier.output_labels"] = list(task.labels)
    for key, value in own.items():
        _add(writer, f"{plan.arch}.{key}", value)


def _add_vocab(writer: Any, plan: Plan, vocab: Vocab, n_rows: int) -> None:
    _add(writer, "tokenizer.ggml.model", vocab.model)
    _add(writer, "tokenizer.ggml.token_type_count", plan.n_token_types)
    if vocab.model == "none":
        _add(writer, f"{plan.arch}.vocab_size", n_rows)
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
