"""lower: one variant's files, by its target."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, VariantState, as_text
from edgelm.compiler.converter import converter_inputs, converter_of
from edgelm.compiler.hf import seed_everything, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.allocate import check_auto, is_auto
from edgelm.compiler.passes.imatrix import check_matrix, uses_matrix
from edgelm.compiler.recipe import Recipe, split_target
from edgelm.runtime.engine import BatchLimits, TokenBatch
from edgelm.runtime.errors import RecipeError, TargetUnavailable
from edgelm.runtime.manifest import TaskKind
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.schema import decode, encode
from edgelm.runtime.tokenizer import Text, Tokenizer
from edgelm.targets import all_precisions, get_target, precision_of
from edgelm.targets.base import Lowered, LowerRequest, Quantization, Target
from edgelm.targets.precision import names_for, tasks_of

CALIBRATION_LIMITS = BatchLimits(max_sequences=16, max_tokens=2048)


def check_target(recipe: Recipe, spec: str) -> None:
    """Refuse, before any work, what would fail after the training.

    Raises RecipeError, TargetUnavailable, MissingExtra."""
    name, precision = split_target(spec)
    target = get_target(name)
    versions(*_packages(target, recipe.task))
    reason = target.available()
    if reason is not None:
        raise TargetUnavailable(f"{spec} cannot be verified here: {reason}")
    row = precision_of(name, precision)
    if recipe.task not in tasks_of(target.precisions):
        raise RecipeError(f"targets: {name} cannot do {recipe.task}")
    if recipe.task not in row.tasks:
        raise RecipeError(
            f"targets: {name} has no precision {precision!r} for {recipe.task}",
            hint=f"it has {', '.join(names_for(target.precisions, recipe.task))}",
        )
    if row.is_calibrated and recipe.data.train is None:
        raise _no_calibration(precision)
    smooth = recipe.quantize.smooth
    if smooth is not None and not any(map(is_smoothed, recipe.targets)):
        able = [spec for spec, row in all_precisions() if row.is_smoothed]
        says = f"is for the targets {' and '.join(able)}"
        raise RecipeError(f"quantize.smooth: {smooth!r}: {says}")
    check_matrix(recipe, spec)
    check_auto(recipe, spec)
    if name == "gguf":
        converter_of(recipe)


def _packages(target: Target, task: TaskKind) -> tuple[str, ...]:
    """Those whose versions decide what the target writes."""
    return target.decoder_packages if task == "text-generation" else target.lower_packages


def is_smoothed(spec: str) -> bool:
    """Whether `quantize.smooth` is for this variant."""
    return precision_of(*split_target(spec)).is_smoothed


def _no_calibration(precision: str) -> RecipeError:
    return RecipeError(
        f"{precision} needs training data to calibrate with",
        hint="name it with --train FILE (with --no-train it is used for calibration alone)",
    )


class Lower(Pass):
    """Sets context.variants[name]; the files lie in variants/<name>/ below the stage."""

    version = 2  # since fp16 of encoders is a graph of half floats

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.target, self.precision = split_target(spec)
        self.variant = f"{self.target}-{self.precision}"
        self.name = f"lower {self.variant}"

    def inputs(self, context: Context) -> dict[str, Any]:
        recovered = context.digests.get(f"recover {self.variant}")
        plain = self.plain_inputs(context)
        return plain if recovered is None else {**plain, "recovered": recovered}

    def plain_inputs(self, context: Context) -> dict[str, Any]:
        """What decides the files of a variant that is not recovered."""
        recipe = context.recipe
        quantize = recipe.quantize
        row = precision_of(self.target, self.precision)
        how = [context.digests["reference"], recipe.seed, quantize.calibration]
        return {
            "model": context.model_key,
            "precision": self.precision,
            "device": quantize.device if self.target == "onnx" else None,
            "calibration": [*how, quantize.calibration_texts] if row.is_calibrated else None,
            "packages": versions(*_packages(get_target(self.target), recipe.task)),
            "imatrix": context.digests["imatrix"] if uses_matrix(recipe, self.spec) else None,
            **(_gguf_inputs(recipe) if self.target == "gguf" else {}),
            **self._smooth(context),
            **self._auto(context),
        }

    def _smooth(self, context: Context) -> dict[str, Any]:
        """What decides which outliers move."""
        quantize = context.recipe.quantize
        if quantize.smooth is None or not is_smoothed(self.spec):
            return {}
        seen = [context.digests["reference"], context.recipe.seed, quantize.calibration_texts]
        return {"smooth": [quantize.smooth, *seen]}

    def _auto(self, context: Context) -> dict[str, Any]:
        """What decides the roundings of a variant whose types were chosen."""
        if not is_auto(self.spec):
            return {}
        sensitivity = context.digests[f"sensitivity {self.target}"]
        return {"types": context.types[self.target], "sensitivity": sensitivity}

    def run(self, context: Context, folder: Path) -> None:
        inside = folder / "variants" / self.variant
        inside.mkdir(parents=True)
        seed_everything(context.recipe.seed)
        request = replace(
            self.request(context, inside), recovered=context.recovered.get(self.variant)
        )
        with torch_threads(context.recipe.threads):
            lowered = get_target(self.target).lower(request)
        (folder / "lowered.json").write_text(json.dumps(encode(lowered)), encoding="utf-8")

    def request(self, context: Context, folder: Path) -> LowerRequest:
        """What the target is asked for; it writes into the empty `folder`."""
        assert context.model_dir and context.task and context.text
        quantize = context.recipe.quantize
        return LowerRequest(
            model_dir=context.model_dir,
            task=context.task,
            text=context.text,
            precision=self.precision,
            folder=folder,
            quantization=Quantization(
                calibration=quantize.calibration,
                smooth=quantize.smooth,
                reduce_range=quantize.device == "any",
                tensor_types=quantize.tensor_types,
            ),
            calibration=lambda: calibration_batches(context, self.precision),
            imatrix=context.imatrix if uses_matrix(context.recipe, self.spec) else None,
            **(_gguf_options(context.recipe) if self.target == "gguf" else {}),
            types=context.types.get(self.target, {}),
            curvature=context.curvatures.get(self.target),
            report=lambda step: context.progress.advance(0, None, step),
            advance=context.progress.advance,
        )

    def load(self, context: Context, folder: Path) -> None:
        lowered = decode(Lowered, json.loads((folder / "lowered.json").read_text(encoding="utf-8")))
        for name in lowered.files:
            assert (folder / "variants" / self.variant / name).is_file(), name
        for note in lowered.notes:
            context.note(f"{self.variant}: {note}")
        context.variants[self.variant] = VariantState(
            self.variant, self.target, self.precision, folder, lowered
        )


def _gguf_inputs(recipe: Recipe) -> dict[str, Any]:
    return {
        "converter": converter_inputs(recipe),
        "split_size_mb": recipe.gguf.split_size_mb,
        # as pairs: the first pattern that fits decides, and keys are sorted in a digest
        "tensor_types": list(recipe.quantize.tensor_types.items()),
    }


def _gguf_options(recipe: Recipe) -> dict[str, Any]:
    """What of a LowerRequest concerns GGUF files alone."""
    size = recipe.gguf.split_size_mb
    return {
        "converter": converter_of(recipe),
        "split_bytes": None if size is None else size * 1_000_000,
    }


def calibration_batches(context: Context, precision: str) -> Iterable[TokenBatch]:
    """The calibration texts, tokenized."""
    assert context.text and context.tokenizer_dir
    texts = calibration_texts(context)
    if not texts:
        raise _no_calibration(precision)
    tokens = Tokenizer(context.tokenizer_dir, context.text).encode(texts)
    for indices in plan_batches(tokens.lengths, CALIBRATION_LIMITS):
        yield tokens.batch(indices, context.text.pad_id)


def calibration_texts(context: Context) -> list[Text]:
    """A seeded sample of the training texts; evaluation texts are never used."""
    assert context.data
    texts: list[Text] = [as_text(e) for e in context.data.train]
    rng = np.random.default_rng(context.recipe.seed)
    n = min(len(texts), context.recipe.quantize.calibration_texts)
    return [texts[i] for i in sorted(rng.choice(len(texts), n, replace=False))]
