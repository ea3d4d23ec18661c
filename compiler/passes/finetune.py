"""finetune: an encoder, LoRA or full, through transformers' Trainer and peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, as_text, truth_matrix
from edgelm.compiler.data import Dataset
from edgelm.compiler.hf import linear_layers, load_model, load_tokenizer
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.training import Training, add_lora, make_trainer, method
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.runtime.metrics import classification_metrics, main_metric
from edgelm.runtime.schema import encode

SKEW = 5.0  # class weights are used when the commonest label has this many times the rarest


class Finetune(Training):
    """Fine-tunes an encoder with its classification head."""

    def deciding(self, context: Context) -> dict[str, Any]:
        assert context.data and context.task
        return {
            "data": context.data.digest(),
            "task": encode(replace(context.task, threshold=0.5)),  # no matter for training
        }

    def set_up(self, context: Context, checkpoints: Path) -> tuple[Any, Any, dict[str, Any]]:
        assert context.source and context.data and context.task and context.text
        recipe, task, data = context.recipe, context.task, context.data
        from transformers import DataCollatorWithPadding

        tokenizer = load_tokenizer(context.source.folder)
        model = load_model(context.source.folder, task, new_head=True)
        if method(recipe) == "lora":
            model = add_adapters(model, recipe)
        trainer = make_trainer(
            context,
            checkpoints,
            main_metric(task),
            {"per_device_eval_batch_size": 64, "train_sampling_strategy": "group_by_length"},
            model=model,
            train_dataset=_rows(data, "train", tokenizer, task, context.text),
            eval_dataset=_rows(data, "eval", tokenizer, task, context.text),
            data_collator=DataCollatorWithPadding(tokenizer, return_tensors="pt"),
            compute_metrics=lambda p: _metrics(task, p),
            compute_loss_func=_loss(task, _class_weights(recipe, task, data)),
        )
        return model, trainer, {}


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """Put LoRA adapters on the encoder's linear layers; the head is trained in full.

    Raises RecipeError when `lora.targets` names no layer."""
    encoder_name = model.base_model_prefix
    heads = [
        name
        for name, module in model.named_children()
        if name != encoder_name and any(True for _ in module.parameters())
    ]
    if hasattr(getattr(model, encoder_name), "pooler"):
        heads.append(f"{encoder_name}.pooler")
    layers = [f"{encoder_name}.{name}" for name in linear_layers(getattr(model, encoder_name))]
    return add_lora(model, recipe, layers, heads)


def _metrics(task: Task, prediction: Any) -> dict[str, float]:
    # label_ids, not the data's own order: Trainer groups evaluation texts by length, too
    labels = np.asarray(prediction.label_ids)
    if task.problem == "single_label":
        truth = labels[:, None] == np.arange(len(task.labels))
    else:
        truth = labels > 0.5
    return classification_metrics(task, truth, np.asarray(prediction.predictions, np.float32))


def _rows(data: Dataset, split: str, tokenizer: Any, task: Task, text: TextLimits) -> Any:
    examples = data.train if split == "train" else data.eval
    truth = truth_matrix(task, examples)
    rows: list[dict[str, Any]] = []
    for example, given in zip(examples, truth, strict=True):
        item = as_text(example)
        encoded = tokenizer(
            *(item if isinstance(item, tuple) else (item,)),
            truncation=True,
            max_length=text.max_tokens,
            return_token_type_ids=text.type_ids,
        )
        multi = task.problem == "multi_label"
        label = given.astype(np.float32).tolist() if multi else int(given.argmax())
        rows.append({**encoded, "labels": label})
    return rows


def _loss(task: Task, weights: np.ndarray[Any, Any] | None) -> Any:
    import torch

    scale = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs.logits.float()
        put = None if scale is None else scale.to(logits.device)
        if task.problem == "multi_label":
            mean = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, labels.float(), pos_weight=put
            )
        else:
            mean = torch.nn.functional.cross_entropy(logits, labels, weight=put)
        if num_items_in_batch is None:
            return mean
        return mean * (labels.numel() / num_items_in_batch)  # its share of an accumulated step

    return loss


def _class_weights(recipe: Recipe, task: Task, data: Dataset) -> np.ndarray[Any, Any] | None:
    """Weights (C,) that make up for rare labels, or None.

    Single label: n / (C n_c), as scikit-learn's `balanced`. Multi-label: the square root of
    negatives over positives, within 1 and 10, for the positive term of each label.
    """
    counts = truth_matrix(task, data.train).sum(axis=0).astype(np.float64)
    counts = np.maximum(counts, 1.0)
    skewed = counts.max() / counts.min() > SKEW
    choice = recipe.train.class_weights
    if choice == "none" or (choice == "auto" and not skewed):
        return None
    n = len(data.train)
    if task.problem == "multi_label":
        return np.clip(np.sqrt((n - counts) / counts), 1.0, 10.0)
    return n / (len(counts) * counts)
