"""sensitivity: what errors of each matrix cost the task, for the precision auto.

Two stages: `Sensitivity` runs and differentiates the model on training texts (never on evaluation
texts), `Errors` rounds each matrix into each type and tells what it takes and costs. Neither
depends on the size asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelm.compiler.chat.samples import render
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_model, load_tokenizer, seed_everything, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.imatrix import (
    BATCHES,
    calibration_tokens,
    read_text,
    sampling_inputs,
    shuffled,
)
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.recover.settings import recovery
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.schema import decode, encode
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest, Quantization
from edgelm.targets.costs import Table
from edgelm.targets.precision import AUTO

FILE = "curvature.safetensors"
_PACKAGES = ("torch", "transformers", "tokenizers")


class Sensitivity(Pass):
    """Sets context.curvatures[target]."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.name = f"sensitivity {target}"

    def inputs(self, context: Context) -> dict[str, Any]:
        packages = (*_PACKAGES, *get_target(self.target).lower_packages)
        return {**sampling_inputs(context), "versions": versions(*dict.fromkeys(packages))}

    def run(self, context: Context, folder: Path) -> None:
        from edgelm.compiler.allocate.probes import text_losses, token_losses

        request = _request(context, folder)
        model_dir, task, text, recipe = (
            request.model_dir,
            request.task,
            request.text,
            context.recipe,
        )
        seed_everything(recipe.seed)
        advance = context.progress.advance
        with torch_threads(recipe.threads):
            model = load_model(model_dir, task, new_head=False)
            if task.kind == "text-generation":
                samples = list(_samples(context))
                losses = token_losses(model, samples, recipe.seed)
                n = len(samples)
            else:
                tokens = calibration_tokens(context)
                plan = list(plan_batches(tokens.lengths, BATCHES))
                batches = (tokens.batch(some, text.pad_id) for some in plan)
                losses = text_losses(model, task, text, batches, recipe.seed)
                n = len(plan)

            def counted() -> Iterator[Any]:
                for i, loss in enumerate(losses):
                    advance(i, n)
                    yield loss

            get_target(self.target).weigh(model, request, counted(), folder / FILE)

    def load(self, context: Context, folder: Path) -> None:
        context.curvatures[self.target] = folder / FILE


class Errors(Pass):
    """Sets context.tables[target]."""

    resumable = True

    def __init__(self, target: str) -> None:
        self.target = target
        self.name = f"errors {target}"

    def inputs(self, context: Context) -> dict[str, Any]:
        target = get_target(self.target)
        recipe, device = context.recipe, context.recipe.quantize.device
        return {
            "sensitivity": context.digests[f"sensitivity {self.target}"],
            "kinds": list(target.capabilities().kinds),
            "device": device if self.target == "onnx" else None,
            "feedback": self._is_recovered(recipe),
            "versions": versions(*target.lower_packages),
        }

    def run(self, context: Context, folder: Path) -> None:
        request = _request(context, folder)
        with torch_threads(context.recipe.threads):
            table = get_target(self.target).tabulate(
                replace(
                    request,
                    curvature=context.curvatures[self.target],
                    feedback=self._is_recovered(context.recipe),
                )
            )
        (folder / "table.json").write_text(json.dumps(encode(table)), encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        text = (folder / "table.json").read_text(encoding="utf-8")
        context.tables[self.target] = decode(Table, json.loads(text))

    def _is_recovered(self, recipe: Recipe) -> bool:
        return recovery(recipe, f"{self.target}:{AUTO}") != "none"


def _request(context: Context, folder: Path) -> LowerRequest:
    assert context.model_dir and context.task and context.text
    return LowerRequest(
        model_dir=context.model_dir,
        task=context.task,
        text=context.text,
        precision=AUTO,
        folder=folder,
        quantization=Quantization(reduce_range=context.recipe.quantize.device == "any"),
        advance=context.progress.advance,
    )


def _samples(context: Context) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids, and the places of those that the model is to learn; about `imatrix_tokens`."""
    from edgelm.targets.gguf.activations import pieces

    assert context.chat and context.text and context.model_dir
    tokenizer = load_tokenizer(context.model_dir, padded=False)
    quantize, max_tokens = context.recipe.quantize, context.text.max_tokens
    left = quantize.imatrix_tokens
    if quantize.calibration_file is not None:
        ids = tokenizer(read_text(context, quantize.calibration_file))["input_ids"][:left]
        begin = ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
        yield from ((p, list(range(1, len(p)))) for p in pieces(ids, begin, max_tokens) if p[1:])
        return
    for row in shuffled(context, list(context.chat.train)):
        sample = render(row, tokenizer, max_tokens)
        targets = [t for t, counts in enumerate(sample.targets) if counts and t > 0]
        if targets:
            yield list(sample.ids), targets
            left -= len(sample.ids)
        if left <= 0:
            return
