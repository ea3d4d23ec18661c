"""teach: the model as it is, asked once about every text that its student is to learn from.

The stage is kept: another student of the same teacher on the same texts finds the answers there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.cache import digest
from edgelm.compiler.context import Context, eval_texts
from edgelm.compiler.distil.probes import text_batches
from edgelm.compiler.distil.teacher import Array, Values, record
from edgelm.compiler.distil.texts import learning_rows, unlabelled_texts
from edgelm.compiler.hf import (
    load_model,
    load_tokenizer,
    pool,
    reference_outputs,
    torch_threads,
    versions,
)
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.reference import metrics_of
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.engine import BatchLimits
from edgelm.runtime.files import write_atomic
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.schema import encode

ANSWERS = "answers"
LAYERS = "layers.json"
BATCHES = BatchLimits(max_sequences=32, max_tokens=4096)


class Teach(Pass):
    """Sets context.taught, .kept_layers, .original and .original_metrics."""

    name = "teach"
    resumable = True

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.task and context.text and context.data
        return {
            "model": context.model_key,
            "data": context.data.digest(),
            "unlabelled": digest(unlabelled_texts(context)),
            "measured": measured(context.recipe),
            "relations": context.recipe.distil.relation_weight != 0,
            "hidden": [context.recipe.prune.layers] if has_hidden(context.recipe) else None,
            "task": encode(context.task),
            "text": encode(context.text),
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        from edgelm.compiler.distil import relations

        assert context.model_dir and context.task and context.text
        task = context.task
        tokenizer = load_tokenizer(context.model_dir)
        model = load_model(context.model_dir, task, new_head=False)
        rows = learning_rows(context, tokenizer)
        lengths = [len(row["input_ids"]) for row in rows]
        with torch_threads(context.recipe.threads):
            choose_layers(
                context, folder, model, lambda: text_batches(rows, tokenizer, context.recipe.seed)
            )
        has_relations = context.recipe.distil.relation_weight != 0
        layers = context.kept_layers if has_hidden(context.recipe) else []

        def answer(numbers: Sequence[int]) -> Values:
            import torch

            keys = [k for k in rows[0] if k in tokenizer.model_input_names]
            batch = tokenizer.pad(
                [{k: rows[i][k] for k in keys} for i in numbers], return_tensors="pt"
            )
            with torch.inference_mode(), ExitStack() as stack:
                seen = stack.enter_context(relations.watched(model)) if has_relations else {}
                out = model(**batch, output_hidden_states=bool(layers))
            mask = batch["attention_mask"]
            said: Values = {}
            if task.kind == "feature-extraction":
                said["vectors"] = pool(out.last_hidden_state, mask, task.pooling).numpy()
            else:
                said["logits"] = out.logits.numpy()
            if layers:
                states = torch.stack([out.hidden_states[i + 1] for i in layers], 2)  # (B, T, K, H)
                said["hidden"] = states[mask.bool()].half().numpy()
            if has_relations:
                said["relations"] = relations.answers(seen, mask).half().numpy()
            return said

        arrays = [
            Array("vectors", "float32", (int(model.config.hidden_size),), per_row=True)
            if task.kind == "feature-extraction"
            else Array("logits", "float32", (len(task.labels),), per_row=True)
        ]
        if layers:
            arrays.append(Array("hidden", "float16", (len(layers), int(model.config.hidden_size))))
        if has_relations:
            shape = (len(relations.PARTS), relations.width(model))
            arrays.append(Array("relations", "float16", shape))
        batches = [b.tolist() for b in plan_batches(np.array(lengths, np.int32), BATCHES)]
        texts = eval_texts(context)
        with torch_threads(context.recipe.threads):
            record(folder / ANSWERS, arrays, lengths, batches, answer, context.progress.advance)
            outputs = reference_outputs(model, tokenizer, task, texts, context.text.max_tokens)
        np.save(folder / "outputs.npy", outputs)

    def load(self, context: Context, folder: Path) -> None:
        load_layers(context, folder)
        context.taught = folder / ANSWERS
        context.original = outputs = np.load(folder / "outputs.npy")
        context.original_metrics = metrics_of(context, outputs)


def choose_layers(
    context: Context, folder: Path, model: Any, batches: Callable[[], Iterable[dict[str, Any]]]
) -> None:
    """Set context.kept_layers; what the layers change is measured where the recipe wants that, and
    written down."""
    from edgelm.compiler.distil.pruning import layer_changes

    if measured(context.recipe) is not None and not (folder / LAYERS).is_file():
        write_atomic(folder / LAYERS, json.dumps(layer_changes(model, batches())))
    context.kept_layers = _kept_layers(context, folder)


def load_layers(context: Context, folder: Path) -> None:
    """Set context.kept_layers, by what `choose_layers` has written, and say why these."""
    context.kept_layers = kept = _kept_layers(context, folder)
    if measured(context.recipe) is None:
        return
    changes = _changes(folder)
    each = ", ".join(f"{i} {change:.3g}" for i, change in enumerate(changes))
    context.note(
        f"prune.layers: of the {len(changes)} layers, counted from 0, {kept} are kept; 1 - cosine "
        f"of what goes into each and what comes out: {each}"
    )


def _kept_layers(context: Context, folder: Path) -> list[int]:
    """None of a student that is not a part of the teacher."""
    from transformers import AutoConfig

    from edgelm.compiler.distil.pruning import evenly, most_changing, shape_of, smaller

    if context.recipe.distil.student is not None:
        return []
    assert context.model_dir is not None
    whole = shape_of(AutoConfig.from_pretrained(context.model_dir, trust_remote_code=False))
    n_kept = smaller(whole, context.recipe.prune).layers
    if measured(context.recipe) is None:
        return evenly(whole.layers, n_kept)
    return most_changing(_changes(folder), n_kept)


def _changes(folder: Path) -> list[float]:
    """Of each layer."""
    return json.loads((folder / LAYERS).read_text(encoding="utf-8"))


def measured(recipe: Recipe) -> int | None:
    """The seed of the texts by which layers are chosen; None where they are chosen evenly."""
    prune = recipe.prune
    is_measured = prune.layers is not None and prune.layer_choice == "measured"
    return recipe.seed if is_measured else None


def has_hidden(recipe: Recipe) -> bool:
    """Whether a student is to have its teacher's hidden states."""
    return recipe.distil.student is None and recipe.distil.hidden_weight != 0
