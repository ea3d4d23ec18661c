"""A Hugging Face directory -> model.gguf, and a file for a head that the graph cannot hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.runtime.errors import MissingExtra, ModelError
from edgelm.targets.base import Lowered, LowerRequest
from edgelm.targets.costs import Table, grade_like, restricted
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.convert import convert
from edgelm.targets.gguf.facts import bits_per_weight
from edgelm.targets.gguf.families import known_families, make_plan
from edgelm.targets.gguf.head import Head
from edgelm.targets.gguf.imatrix import check_covers, read_imatrix
from edgelm.targets.gguf.plan import Config, Plan
from edgelm.targets.gguf.precisions import (
    FLOAT_FILE_TYPES,
    PRECISIONS,
    needs_matrix,
    table_type,
)
from edgelm.targets.gguf.shards import read_model, split_file
from edgelm.targets.gguf.vocab import Vocab, read_vocab
from edgelm.targets.gguf.weights import Weights
from edgelm.targets.gguf.writer import write_gguf
from edgelm.targets.precision import AUTO, find

if TYPE_CHECKING:
    from edgelm.targets.gguf.rounding.types import Bytes, Floats

MODEL_FILE = "model.gguf"
HEAD_FILE = "head.safetensors"
TOKEN_TABLE = "token_embd.weight"
_NO_TOKENS = (
    "llama.cpp has no tokenizer of this kind: other programs than edgelm can feed the file with "
    "token ids only"
)
ENGINE = {"llama-cpp-python": ">=0.3.36"}


@dataclass(frozen=True)
class _Made:
    """What is known of the float file."""

    matrices: Mapping[str, tuple[int, ...]]  # by name, as `Converted.matrices`
    width: int  # H
    options: dict[str, Any]  # of the variant
    head: Head | None
    notes: tuple[str, ...]


def lower(request: LowerRequest) -> Lowered:
    """Write the variant's files into `request.folder`. Raises ModelError, MissingExtra."""
    if find(PRECISIONS, request.precision) is None:
        known = ", ".join(row.name for row in PRECISIONS)
        raise ModelError(f"gguf has no precision {request.precision!r}; it has {known}")
    is_float = request.precision in FLOAT_FILE_TYPES
    first = request.folder / (MODEL_FILE if is_float else "unquantized.gguf")
    precision = request.precision if is_float else None
    write = _write if request.converter is None else _convert
    try:
        made = write(request, first, precision)
        if not is_float:
            request.report(f"quantizing to {request.precision}")
            (_round if request.precision == AUTO else _quantize)(first, request, made)
            if request.recovered is not None:
                made = _put_recovered(first, request, request.recovered)
    finally:
        if not is_float:
            first.unlink(missing_ok=True)
    files = [MODEL_FILE]
    if request.split_bytes is not None:
        request.report("splitting")
        files = split_file(request.folder / MODEL_FILE, request.split_bytes)
    options = made.options
    if made.head is not None:
        made.head.save(request.folder / HEAD_FILE)
        files.append(HEAD_FILE)
        options = options | {"head": HEAD_FILE}
    if request.precision != AUTO:
        return Lowered(tuple(files), dict(ENGINE), options, made.notes)
    bits = bits_per_weight(read_model(request.folder / files[0]))
    like = grade_like(bits)
    return Lowered(tuple(files), dict(ENGINE), options, made.notes, dict(request.types), like)


def tabulate(request: LowerRequest) -> Table:
    """What each type of each matrix takes and costs, in `request.folder`; a table that was cut off
    there goes on. Raises ModelError, MissingExtra."""
    from edgelm.targets.curvature import Curvature
    from edgelm.targets.gguf.rounding import table

    assert request.curvature is not None
    source = request.folder / "unquantized.gguf"
    try:
        made = _write(request, source, None)
        rows = table.tabulate(
            source, Curvature(request.curvature), request.folder / "rows.jsonl", request.advance
        )
        rest_bytes = table.rest_bytes(read_header(source), rows)
        if "type_ids" in made.options:  # the engine reads rows of the token table itself
            rows = restricted(rows, TOKEN_TABLE, table_type(made.width))
    finally:
        source.unlink(missing_ok=True)
    if made.head is not None:
        made.head.save(request.folder / HEAD_FILE)
        rest_bytes += (request.folder / HEAD_FILE).stat().st_size
    return Table(rows, rest_bytes)


def _write(request: LowerRequest, path: Path, precision: str | None) -> _Made:
    """Write the float file by edgelm's own tables; precision None: the model's own."""
    config = _read_config(request.model_dir)
    with Weights(request.model_dir) as weights:
        plan = make_plan(config, weights, request.task, request.text)
        _check_sizes(plan, weights, request)
        family = str(config.values["model_type"])
        n_rows = weights.shape(plan.moves[0].source)[0]
        vocab = read_vocab(request.model_dir, n_rows, family, decoder=plan.causal)
        # no path in the name: equal inputs give equal bytes
        name = f"{_family_name(family, vocab)} {request.task.kind} {request.precision}"
        matrices = {move.name: move.source for move in plan.moves if move.is_matrix}
        precision = precision or weights.own_precision(matrices.values())
        request.report(f"writing {precision} tensors")
        write_gguf(path, plan, weights, vocab, request.task, name, precision)
        shapes = {name: weights.shape(source) for name, source in matrices.items()}
    options: dict[str, Any] = {"max_tokens": request.text.max_tokens}
    options |= {"decoder": True} if plan.pooling is None else {"pooling": plan.pooling}
    # Second texts carry token type 1, which the graph has no input for: the engine looks the
    # token's vector up itself and adds the difference of the two types.
    if request.task.pair and request.text.type_ids and plan.n_token_types > 1:
        options["type_ids"] = True
    notes = (_NO_TOKENS,) if vocab.model == "none" else vocab.notes
    return _Made(shapes, int(plan.keys["embedding_length"]), options, plan.head, notes)


def _convert(request: LowerRequest, path: Path, precision: str | None) -> _Made:
    """As `_write`, by llama.cpp's own script."""
    script = request.converter
    assert script is not None
    family = str(_read_config(request.model_dir).values.get("model_type"))
    notes = (f"converted by {script.name}, as asked, though edgelm knows {family!r} itself",)
    request.report(f"running {script.name}")
    made = convert(script, request.model_dir, path, precision, request.task, request.text)
    return _Made(
        made.matrices,
        made.facts.n_embd,
        made.options,
        head=None,
        notes=notes if family in known_families(request.task) else (),
    )


def _quantize(source: Path, request: LowerRequest, made: _Made) -> None:
    try:
        from edgelm.targets.gguf.quantize import How, choose_types, quantize_file
    except ImportError as err:
        raise MissingExtra("llama-cpp-python", "gguf") from err
    importance = {}
    if request.imatrix is not None:
        imatrix = read_imatrix(request.imatrix)
        check_covers(imatrix, made.matrices, str(request.imatrix))
        importance = imatrix.means()
    types = choose_types(request.quantization.tensor_types, list(made.matrices))
    if needs_matrix(request.precision, types.values()) and not importance:
        raise ModelError(f"{request.precision} cannot be made without an importance matrix")
    table = table_type(made.width) if "type_ids" in made.options else None
    how = How(table, types, importance)
    quantize_file(source, request.folder / MODEL_FILE, request.precision, how)


def _round(source: Path, request: LowerRequest, made: _Made) -> None:
    """By edgelm itself, each matrix into its type."""
    from edgelm.targets.curvature import Curvature
    from edgelm.targets.gguf.rounding.file import write_with
    from edgelm.targets.gguf.rounding.matrices import Rounder

    assert request.curvature is not None
    curvature = Curvature(request.curvature)
    done = 0

    def make(name: str, values: Floats, kind: str) -> Bytes:
        nonlocal done
        data = Rounder(values, curvature.terms(name)).bytes(kind)
        done += 1
        request.advance(done, len(request.types))
        return data

    write_with(source, request.folder / MODEL_FILE, request.types, make)


def _put_recovered(scratch: Path, request: LowerRequest, recovered: Path) -> _Made:
    """The trained values in place of the quantized ones; `scratch` is written over."""
    from edgelm.targets.gguf.recover import put_values

    made = _write(replace(request, model_dir=recovered), scratch, "f32")
    put_values(request.folder / MODEL_FILE, scratch)
    return made


def plan_of(request: LowerRequest) -> Plan:
    """Which tensor goes where. Raises ModelError."""
    with Weights(request.model_dir) as weights:
        return make_plan(_read_config(request.model_dir), weights, request.task, request.text)


def _family_name(family: str, vocab: Vocab) -> str:
    """llama.cpp takes "phi3" in a file's name as a word on the tokenizer: white space after
    special tokens is dropped, and some of them must exist."""
    return family if family != "phi3" or vocab.strips_like_phi3 else "phi"


def _read_config(folder: Path) -> Config:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a config")
    return Config(values)


def _check_sizes(plan: Plan, weights: Weights, request: LowerRequest) -> None:
    """What llama.cpp would only find out at load time, or never."""
    if request.text.max_tokens > plan.context_length:
        raise ModelError(
            f"max_tokens is {request.text.max_tokens}, {plan.context_ends} {plan.context_length}",
            hint=f"lower max_tokens to {plan.context_length}, or choose another target",
        )
    if plan.causal:
        return
    width, heads = plan.keys["embedding_length"], plan.keys["attention.head_count"]
    if width % heads or (width // heads) % 2:
        raise ModelError(f"{width} values do not split evenly over {heads} heads")
    n_blocks = 1 + max(
        (int(m.group(1)) for move in plan.moves if (m := re.match(r"blk\.(\d+)\.", move.name))),
        default=-1,
    )
    assert n_blocks == plan.keys["block_count"]
    out = next((m.source for m in plan.moves if m.name == "cls.output.weight"), None)
    rows = weights.shape(out)[0] if out else plan.head.out_weight.shape[0] if plan.head else None
    if rows is not None and rows != len(request.task.labels):
        raise ModelError(
            f"the classifier has {rows} outputs, the task {len(request.task.labels)} labels"
        )
