"""imatrix: which columns of the model's matrices matter on its texts, for GGUF's quantized types.

Computed once for all variants of a compile. The stage holds imatrix.gguf in llama.cpp's own format:
llama-quantize reads it, and `quantize.imatrix: FILE` takes one from there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.compiler.chat.samples import render
from edgelm.compiler.context import Context, as_text
from edgelm.compiler.converter import converter_inputs, converter_of
from edgelm.compiler.hf import load_model, load_tokenizer, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.recipe import Recipe, split_target
from edgelm.runtime.engine import BatchLimits
from edgelm.runtime.errors import DataError, RecipeError
from edgelm.runtime.files import sha256_file
from edgelm.runtime.lines import text_lines
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.tokenizer import Text, Tokenizer, Tokens
from edgelm.targets.gguf.precisions import (
    QUANTIZED_FILE_TYPES,
    gains_by_matrix,
    needs_matrix,
)

if TYPE_CHECKING:
    from edgelm.targets.gguf.imatrix import Imatrix

FILE = "imatrix.gguf"
BATCHES = BatchLimits(max_sequences=16, max_tokens=2048)
_PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "llama-cpp-python")
_SLICE = 256  # texts that are tokenized at once
_MAX_CHARS = 16  # of a token, on average: how much of a long file is read
HINT = "name texts with --train FILE or --calibration-file FILE, or a matrix with --imatrix FILE"


def is_gainful(recipe: Recipe, spec: str) -> bool:
    """Whether this variant would be better with an importance matrix."""
    target, precision = split_target(spec)
    return target == "gguf" and gains_by_matrix(precision, recipe.quantize.tensor_types.values())


def uses_matrix(recipe: Recipe, spec: str) -> bool:
    """Whether this variant is quantized with one."""
    target, precision = split_target(spec)
    if target != "gguf" or precision not in QUANTIZED_FILE_TYPES:
        return False
    if stated_file(recipe) is not None:
        return True
    return recipe.quantize.imatrix == "auto" and is_gainful(recipe, spec) and has_texts(recipe)


def has_texts(recipe: Recipe) -> bool:
    """Whether there is something to compute one from."""
    return recipe.data.train is not None or recipe.quantize.calibration_file is not None


def sampling_inputs(context: Context) -> dict[str, Any]:
    """What decides which tokens the model is run on, and what it makes of them."""
    return {
        "model": context.model_key,
        "reference": context.digests["reference"],  # which holds the tokenizer
        "texts": texts_digest(context),
        "tokens": context.recipe.quantize.imatrix_tokens,
        "seed": context.recipe.seed,
    }


def texts_digest(context: Context) -> str:
    """Of what `calibration_tokens` takes its texts from."""
    file = context.recipe.quantize.calibration_file
    return sha256_file(Path(file).expanduser()) if file else context.data_digest


def stated_file(recipe: Recipe) -> Path | None:
    """The matrix that the recipe names."""
    stated = recipe.quantize.imatrix
    return None if stated in ("auto", "none") else Path(stated).expanduser()


def check_matrix(recipe: Recipe, spec: str) -> None:
    """Raise RecipeError for what would fail after the training."""
    target, precision = split_target(spec)
    for key, path in (
        ("imatrix", stated_file(recipe)),
        ("calibration_file", recipe.quantize.calibration_file),
    ):
        if path is not None and not Path(path).expanduser().is_file():
            raise RecipeError(f"quantize.{key}: {str(path)!r}: no such file")
    types = recipe.quantize.tensor_types.values()
    if target == "gguf" and needs_matrix(precision, types) and not uses_matrix(recipe, spec):
        raise RecipeError(f"{spec} cannot be made without an importance matrix", hint=HINT)
    if recipe.prune.heads is not None and uses_matrix(recipe, spec):
        raise RecipeError(
            f"{spec}: an importance matrix has no values for heads that prune.heads leaves out",
            hint="state --imatrix none, and leave prune.heads out for types that need one",
        )


def imatrix_passes(recipe: Recipe) -> list[Pass]:
    """The pass, where a variant would gain by it."""
    some = any(is_gainful(recipe, spec) or uses_matrix(recipe, spec) for spec in recipe.targets)
    return [ImportanceMatrix()] if some and recipe.quantize.imatrix != "none" else []


class ImportanceMatrix(Pass):
    """Sets context.imatrix."""

    name = "imatrix"

    def inputs(self, context: Context) -> dict[str, Any] | None:
        recipe = context.recipe
        stated = stated_file(recipe)
        if stated is not None:
            return {"file": sha256_file(stated)}
        if not has_texts(recipe):
            return None
        return {
            **sampling_inputs(context),
            "versions": versions(*_PACKAGES),
            "converter": converter_inputs(recipe),
        }

    def run(self, context: Context, folder: Path) -> None:
        from edgelm.targets.gguf.imatrix import read_imatrix, write_imatrix

        recipe = context.recipe
        stated = stated_file(recipe)
        if stated is not None:
            read_imatrix(stated)
            shutil.copyfile(stated, folder / FILE)
            return
        with torch_threads(recipe.threads):
            found = _compute(context, folder)
        # no path: equal texts give an equal file
        name = Path(recipe.quantize.calibration_file or recipe.data.train or "").name
        write_imatrix(folder / FILE, found, name)

    def load(self, context: Context, folder: Path) -> None:
        if not has_texts(context.recipe) and stated_file(context.recipe) is None:
            names = [s.replace(":", "-") for s in context.recipe.targets]
            gainful = [
                name
                for name, spec in zip(names, context.recipe.targets, strict=True)
                if is_gainful(context.recipe, spec)
            ]
            context.note(
                f"{', '.join(gainful)}: quantized without an importance matrix, as there are no "
                f"training texts; it would lose less with one ({HINT})"
            )
            return
        context.imatrix = folder / FILE


def _compute(context: Context, folder: Path) -> Imatrix:
    """By the Hugging Face model; by llama.cpp where its own script converts the model, as it is
    then not known which layer of the one is which matrix of the other."""
    assert context.model_dir and context.task and context.text
    model_dir, task, text, recipe = context.model_dir, context.task, context.text, context.recipe
    tokens = calibration_tokens(context)
    total = int(tokens.lengths.sum())
    batches = (tokens.batch(some, text.pad_id) for some in plan_batches(tokens.lengths, BATCHES))
    done = 0

    def advance(n_tokens: int) -> None:
        nonlocal done
        done += n_tokens
        context.progress.advance(done, total)

    script = converter_of(recipe)
    if script is None:
        from edgelm.targets.gguf.activations import collect

        model = load_model(model_dir, task, new_head=False)
        return collect(model, model_dir, task, text, batches, advance)
    from edgelm.targets.gguf.convert import convert
    from edgelm.targets.gguf.watch import watched

    with tempfile.TemporaryDirectory(dir=folder, prefix=".converted-") as scratch:
        made = convert(script, model_dir, Path(scratch) / "model.gguf", None, task, text)
        return watched(made, task, text, recipe.threads, batches, advance)


def calibration_tokens(context: Context) -> Tokens:
    """A seeded sample of the training texts (evaluation texts are never used), or the recipe's
    calibration file, tokenized: about `imatrix_tokens` tokens."""
    assert context.task
    limit = context.recipe.quantize.imatrix_tokens
    of_task = _chat_rows if context.task.kind == "text-generation" else _text_rows
    rows: list[list[int]] = []
    types: list[list[int]] = []
    n_tokens = 0
    for ids, type_ids in of_task(context):
        rows.append(ids)
        types.append(type_ids)
        n_tokens += len(ids)
        if n_tokens >= limit:
            break
    if not rows:
        raise DataError("there is no text to compute an importance matrix from", hint=HINT)
    lengths = np.array([len(row) for row in rows], np.int32)
    has_types = context.text is not None and context.text.type_ids
    return Tokens(rows, types if has_types else None, lengths, [False] * len(rows))


def _text_rows(context: Context) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and type ids of each text."""
    assert context.data and context.text and context.tokenizer_dir
    file = context.recipe.quantize.calibration_file
    texts: list[Text]
    if file is not None:
        texts = [line for line in _lines(context, file) if line.strip()]
    else:
        texts = shuffled(context, [as_text(example) for example in context.data.train])
    tokenizer = Tokenizer(context.tokenizer_dir, context.text)
    for start in range(0, len(texts), _SLICE):
        found = tokenizer.encode(texts[start : start + _SLICE])
        for i, ids in enumerate(found.rows):
            yield ids, found.type_rows[i] if found.type_rows is not None else []


def _chat_rows(context: Context) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each piece of each sample."""
    from edgelm.targets.gguf.activations import pieces

    assert context.chat and context.text and context.model_dir
    tokenizer = load_tokenizer(context.model_dir, padded=False)
    file = context.recipe.quantize.calibration_file
    samples: Iterable[list[int]]
    if file is not None:
        limit = context.recipe.quantize.imatrix_tokens
        samples = [tokenizer(read_text(context, file))["input_ids"][:limit]]
    else:
        rows = shuffled(context, list(context.chat.train))
        samples = (list(render(row, tokenizer, context.text.max_tokens).ids) for row in rows)
    for ids in samples:
        begin = ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
        for piece in pieces(ids, begin, context.text.max_tokens):
            if piece:
                yield piece, []


def shuffled(context: Context, rows: list[Any]) -> list[Any]:
    """In a seeded order."""
    order = np.random.default_rng(context.recipe.seed).permutation(len(rows))
    return [rows[i] for i in order]


def read_text(context: Context, file: str) -> str:
    """As much of the file's text as is needed."""
    return "\n".join(_lines(context, file))


def _lines(context: Context, file: str) -> Iterator[str]:
    """As many of the file's lines as are needed, the last one cut."""
    left = _MAX_CHARS * context.recipe.quantize.imatrix_tokens
    for line in text_lines(Path(file).expanduser()):
        yield line[:left]
        left -= len(line) + 1
        if left <= 0:
            return
