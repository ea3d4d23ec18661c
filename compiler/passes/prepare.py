"""prepare: read the data, and settle task and text limits from recipe, data and model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelm.compiler.context import Context, Source
from edgelm.compiler.data import Dataset, load_dataset
from edgelm.compiler.hf import load_tokenizer, uses_type_ids
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.intake import find_model, has_head, read_source
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.training import default_max_tokens, is_trained
from edgelm.runtime.errors import ModelError, RecipeError
from edgelm.runtime.manifest import Pooling, Task, TextLimits
from edgelm.targets.causal import check_pooling, is_causal
from edgelm.targets.encoders import NAMES
from edgelm.targets.precision import AUTO

FEW_TEXTS = 30  # with fewer, one differing text is over 3 points


class Prepare(Pass):
    """Sets context.data, context.task and context.text."""

    name = "prepare"

    def inputs(self, context: Context) -> None:
        assert context.source is not None

    def load(self, context: Context, folder: Path) -> None:
        recipe, source = context.recipe, context.source
        assert source is not None
        check_cuts(recipe, source)
        check_relations(recipe, source)
        check_smooth(recipe, source)
        context.data = data = load_dataset(
            recipe.data,
            task=recipe.task,
            trained=is_trained(recipe),
            model_labels=_model_labels(recipe, source),
            seed=recipe.seed,
        )
        for note in data.report.notes:
            context.note(note)
        context.task = _task(recipe, source, data)
        context.text = _text_limits(context, source)
        if source.prompts and recipe.task == "feature-extraction":
            context.note(
                f"the model was made for texts with prompts before them, which are not added: "
                f"{', '.join(source.prompts)} in its config_sentence_transformers.json"
            )
        n = len(data.eval)
        if n < FEW_TEXTS:
            context.note(f"{n} evaluation texts are few: what is verified on them says little")


def check_cuts(recipe: Recipe, source: Source) -> None:
    """Raise ModelError unless the model can lose what the recipe prunes, on its targets."""
    cuts = (recipe.prune.layers, recipe.prune.heads, recipe.prune.ffn)
    if all(cut is None for cut in cuts):
        return
    from transformers import AutoConfig

    from edgelm.compiler.distil.pruning import check

    check(AutoConfig.from_pretrained(source.folder, trust_remote_code=False), recipe)


def check_relations(recipe: Recipe, source: Source) -> None:
    """Raise ModelError unless teacher and student have queries, keys and values to relate."""
    if not recipe.distil.relation_weight:
        return
    folders = [source.folder]
    if recipe.distil.student is not None:
        folders.append(find_model(replace(recipe, model=recipe.distil.student, revision=None)))
    for folder in folders:
        family = read_source(folder).model_type
        if family not in NAMES:
            raise ModelError(
                f"distil.relation_weight: {folder} is a {family!r}: relations are learned by "
                f"{', '.join(NAMES)}",
                hint="leave distil.relation_weight (--distil-relation-weight) out",
            )


def check_smooth(recipe: Recipe, source: Source) -> None:
    """Raise RecipeError where no outlier could be moved: a decoder's norms have no place for it."""
    smooth = recipe.quantize.smooth
    if smooth is not None and is_causal(source.folder):
        raise RecipeError(
            f"quantize.smooth: {smooth!r}: is for encoders; {source.folder} is a decoder",
            hint="leave quantize.smooth (--smooth) out",
        )


def _model_labels(recipe: Recipe, source: Source) -> tuple[str, ...] | None:
    if recipe.task != "text-classification":
        return None
    if not has_head(source.config):
        if is_trained(recipe):
            return None
        architectures = source.config.get("architectures")
        raise ModelError(
            f"{source.folder}: it has no classification head (architectures: {architectures}), "
            "and is not to be trained",
            hint="give training data with --train FILE",
        )
    by_id = source.config.get("id2label")
    if not isinstance(by_id, dict):  # transformers leaves out its own default of two labels
        return tuple(f"LABEL_{i}" for i in range(int(source.config.get("num_labels", 2))))
    return tuple(str(by_id[k]) for k in sorted(by_id, key=int))


def _task(recipe: Recipe, source: Source, data: Dataset) -> Task:
    if recipe.task == "text-classification":
        return Task(
            kind=recipe.task,
            labels=data.labels,
            problem=data.problem,
            threshold=recipe.threshold,
            pair=data.pair,
        )
    pooling: Pooling = recipe.pooling or source.pooling or "mean"
    if is_causal(source.folder):
        check_pooling(pooling)
        if f"onnx:{AUTO}" in recipe.targets:
            raise RecipeError(
                f"targets: onnx:{AUTO} is for encoders, and {source.folder} is a decoder",
                hint="take onnx:int4 or onnx:int8, or gguf:auto",
            )
    normalize = recipe.normalize if recipe.normalize is not None else source.normalize
    return Task(
        kind=recipe.task,
        pooling=pooling,
        normalize=bool(normalize),
        dimensions=int(source.config.get("hidden_size") or source.config.get("dim") or 0) or None,
    )


def _text_limits(context: Context, source: Source) -> TextLimits:
    from transformers import AutoConfig

    tokenizer = load_tokenizer(source.folder)
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as err:
        raise ModelError(f"{source.folder}: its config cannot be loaded: {err}") from err
    limit, even = max_tokens(context), even_positions(config)
    if even is not None and even < limit:
        context.note(
            f"max_tokens: {even} in place of {limit}: beyond it the model's positions (longrope) "
            "of a text depend on the texts beside it"
        )
        limit = even
    return TextLimits(
        max_tokens=limit,
        pad_id=int(tokenizer.pad_token_id),
        type_ids=uses_type_ids(tokenizer, config),
    )


def even_positions(config: Any) -> int | None:
    """Up to which length longrope treats a text alike, whatever stands beside it in a batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])


def max_tokens(context: Context) -> int:
    """How many tokens a text may have, by recipe, task and model."""
    assert context.source is not None
    wanted, allowed = default_max_tokens(context.recipe), context.source.max_tokens
    if allowed < wanted and context.recipe.max_tokens is not None:
        context.note(f"max_tokens: {wanted} is over what the model takes, {allowed}")
    return min(wanted, allowed)
