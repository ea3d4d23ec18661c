"""teach: the model as it is, asked once about every text that its student is to learn from.

The stage is kept: another student of the same teacher on the same texts finds the answers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.cache import digest
from edgelm.compiler.context import Context, eval_texts
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
from edgelm.runtime.engine import BatchLimits
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.schema import encode

ANSWERS = "answers"
BATCHES = BatchLimits(max_sequences=32, max_tokens=4096)


class Teach(Pass):
    """Sets context.taught, .original and .original_metrics."""

    name = "teach"
    resumable = True

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.task and context.text and context.data
        return {
            "model": context.model_key,
            "data": context.data.digest(),
            "unlabelled": digest(unlabelled_texts(context)),
            "hidden": hidden_layers(context),
            "task": encode(context.task),
            "text": encode(context.text),
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.task and context.text
        task = context.task
        tokenizer = load_tokenizer(context.model_dir)
        model = load_model(context.model_dir, task, new_head=False)
        rows = learning_rows(context, tokenizer)
        lengths = [len(row["input_ids"]) for row in rows]
        layers = hidden_layers(context)

        def answer(numbers: Sequence[int]) -> Values:
            import torch

            keys = [k for k in rows[0] if k in tokenizer.model_input_names]
            batch = tokenizer.pad(
                [{k: rows[i][k] for k in keys} for i in numbers], return_tensors="pt"
            )
            with torch.inference_mode():
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
            return said

        arrays = [
            Array("vectors", "float32", (int(model.config.hidden_size),), per_row=True)
            if task.kind == "feature-extraction"
            else Array("logits", "float32", (len(task.labels),), per_row=True)
        ]
        if layers:
            arrays.append(Array("hidden", "float16", (len(layers), int(model.config.hidden_size))))
        batches = [b.tolist() for b in plan_batches(np.array(lengths, np.int32), BATCHES)]
        texts = eval_texts(context)
        with torch_threads(context.recipe.threads):
            record(folder / ANSWERS, arrays, lengths, batches, answer, context.progress.advance)
            outputs = reference_outputs(model, tokenizer, task, texts, context.text.max_tokens)
        np.save(folder / "outputs.npy", outputs)

    def load(self, context: Context, folder: Path) -> None:
        context.taught = folder / ANSWERS
        context.original = outputs = np.load(folder / "outputs.npy")
        context.original_metrics = metrics_of(context, outputs)


def hidden_layers(context: Context) -> list[int]:
    """Layers of the teacher behind which the student is to have its hidden states."""
    from transformers import AutoConfig

    from edgelm.compiler.distil.pruning import evenly, shape_of, smaller

    recipe = context.recipe
    if recipe.distil.student is not None or recipe.distil.hidden_weight == 0:
        return []
    assert context.model_dir is not None
    whole = shape_of(AutoConfig.from_pretrained(context.model_dir, trust_remote_code=False))
    return evenly(whole.layers, smaller(whole, recipe.prune).layers)
