"""finetune: LoRA or full, through transformers' Trainer and peft.

Writes `adapter/` (LoRA) or `full/` (all weights), and `history.json`. Checkpoints of each epoch
stay in the partial folder, so a killed run goes on from the last one.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, as_text, truth_matrix
from edgelm.compiler.data import Dataset
from edgelm.compiler.hf import load_model, load_tokenizer, seed_everything, torch_threads, versions
from edgelm.compiler.machine import cpu_has
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.prepare import is_trained
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.runtime.metrics import classification_metrics, main_metric
from edgelm.runtime.schema import encode, nearest

SKEW = 5.0  # class weights are used when the commonest label has this many times the rarest
CHECKPOINTS = "checkpoints"


class Finetune(Pass):
    """Sets context.training."""

    name = "finetune"
    resumable = True

    def inputs(self, context: Context) -> dict[str, Any] | None:
        assert context.source and context.data and context.task and context.text
        if not is_trained(context.recipe):
            return None
        recipe = context.recipe
        return {
            "model": context.source.digest,
            "data": context.data.digest(),
            "task": encode(replace(context.task, threshold=0.5)),  # no matter for training
            "text": encode(context.text),
            "train": encode(recipe.train),
            "lora": encode(recipe.lora) if method(recipe) == "lora" else None,
            "seed": recipe.seed,
            "precision": "bf16" if _bf16(recipe) else "fp32",
            "versions": versions("torch", "transformers", "peft", "accelerate"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.source and context.data and context.task and context.text
        recipe, task = context.recipe, context.task
        seed_everything(recipe.seed)
        tokenizer = load_tokenizer(context.source.folder)
        model = load_model(context.source.folder, task, new_head=True)
        if method(recipe) == "lora":
            model = add_adapters(model, recipe)
        started = time.monotonic()
        with torch_threads(recipe.threads):
            trainer = _trainer(context, model, tokenizer, folder / CHECKPOINTS)
            trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS))
        name = "adapter" if method(recipe) == "lora" else "full"
        model.save_pretrained(folder / name)
        history = {
            "method": method(recipe),
            "seconds": round(time.monotonic() - started, 1),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "epochs": _epochs(trainer.state.log_history),
        }
        (folder / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    def load(self, context: Context, folder: Path) -> None:
        if not is_trained(context.recipe):
            context.training = {"method": "none", "epochs": []}
            return
        context.training = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        context.training["folder"] = str(folder)


def method(recipe: Recipe) -> str:
    """`lora` or `full`, with `auto` settled."""
    return "full" if recipe.train.method == "full" else "lora"


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """Put LoRA adapters on the encoder's linear layers; the head is trained in full.

    Raises RecipeError when `lora.targets` names no layer."""
    from peft import LoraConfig, get_peft_model

    encoder_name = model.base_model_prefix
    heads = [
        name
        for name, module in model.named_children()
        if name != encoder_name and any(True for _ in module.parameters())
    ]
    linear = _linear_layers(model, encoder_name)
    short = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wanted = recipe.lora.targets or short
    for name in wanted:
        if name not in short:
            raise RecipeError(
                f"lora.targets: the model has no linear layer {name!r}{nearest(name, short)}",
                hint=f"its linear layers are {', '.join(short)}",
            )
    if hasattr(getattr(model, encoder_name), "pooler"):
        heads.append(f"{encoder_name}.pooler")
    config = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha or recipe.lora.rank,
        lora_dropout=recipe.lora.dropout,
        target_modules=[n for n in linear if n.rsplit(".", 1)[-1] in wanted],
        modules_to_save=heads,
        bias="none",
    )
    return get_peft_model(model, config)


def _linear_layers(model: Any, encoder_name: str) -> list[str]:
    from torch.nn import Linear

    return [
        f"{encoder_name}.{name}"
        for name, module in getattr(model, encoder_name).named_modules()
        if isinstance(module, Linear) and "pooler" not in name.split(".")
    ]


def _trainer(context: Context, model: Any, tokenizer: Any, checkpoints: Path) -> Any:
    import torch
    from transformers import (
        DataCollatorWithPadding,
        EarlyStoppingCallback,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    assert context.data and context.task and context.text
    recipe, task, data = context.recipe, context.task, context.data
    train = recipe.train
    early = train.early_stop > 0
    default_rate = 2e-3 if method(recipe) == "lora" else 1e-4
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=train.learning_rate or default_rate,
        lr_scheduler_type="linear",
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        use_cpu=not torch.cuda.is_available(),
        bf16=_bf16(recipe),
        eval_strategy="epoch" if early else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=early,
        restore_callback_states_from_checkpoint=True,  # or early stopping would count anew
        metric_for_best_model=main_metric(task) if early else None,
        train_sampling_strategy="group_by_length",
        logging_strategy="epoch",
        report_to=[],
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    callbacks: list[Any] = [_progress_callback(context)]
    if early:
        callbacks.append(EarlyStoppingCallback(train.early_stop))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_rows(data, "train", tokenizer, task, context.text),
        eval_dataset=_rows(data, "eval", tokenizer, task, context.text),
        data_collator=DataCollatorWithPadding(tokenizer, return_tensors="pt"),
        compute_metrics=lambda p: _metrics(task, p),
        compute_loss_func=_loss(task, _class_weights(recipe, task, data)),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results alone belong
    return trainer


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
            return torch.nn.functional.binary_cross_entropy_with_logits(
                logits, labels.float(), pos_weight=put
            )
        return torch.nn.functional.cross_entropy(logits, labels, weight=put)

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


def _bf16(recipe: Recipe) -> bool:
    import torch

    if recipe.train.precision != "auto":
        return recipe.train.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capability = torch.backends.cpu.get_cpu_capability()
    return capability in ("AVX512", "AVX512_BF16", "AMX") and cpu_has("avx512_bf16")


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state comes last."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the run was killed while it wrote this one
            continue
        whole[int(state["global_step"])] = path
    return str(whole[max(whole)]) if whole else None


def _progress_callback(context: Context) -> Any:
    from transformers import TrainerCallback

    class Show(TrainerCallback):
        detail = ""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            context.progress.advance(state.global_step, state.max_steps, self.detail)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **k: Any) -> None:
            for key in ("loss", "eval_accuracy", "eval_micro_f1"):
                if logs and key in logs:
                    self.detail = f"{key} {float(logs[key]):.3f}"

    return Show()


def _epochs(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Trainer's log as one row an epoch."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        row = rows.setdefault(round(entry["epoch"]), {"epoch": round(entry["epoch"])})
        for key in ("loss", "eval_loss", "eval_accuracy", "eval_macro_f1", "eval_micro_f1"):
            if key in entry:
                row[key] = round(float(entry[key]), 5)
    return list(rows.values())
