"""What all fine-tuning shares: whether and how, adapters, Trainer's arguments, going on after a
kill.

Writes `adapter/` (LoRA) or `full/` (all weights), and `history.json`. Checkpoints of each epoch
stay in the partial folder, so a killed run goes on from the last one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgelm.compiler.context import Context
from edgelm.compiler.hf import seed_everything, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.sections import LoraConfig, TrainConfig
from edgelm.compiler.shrinking import DistilConfig
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.hardware import cpu_flags
from edgelm.runtime.schema import encode, nearest

CHECKPOINTS = "checkpoints"
GENERATION = "text-generation"


def is_trained(recipe: Recipe) -> bool:
    """Whether this compile fine-tunes."""
    if recipe.adapter is not None:
        return False
    if recipe.train.method == "auto":
        return recipe.task != "feature-extraction" and recipe.data.train is not None
    if recipe.train.method != "none" and recipe.data.train is None:
        raise RecipeError(
            f"train.method: {recipe.train.method!r} needs training data",
            hint="name it with --train FILE, or compile the model as it is with --no-train",
        )
    return recipe.train.method != "none"


def method(recipe: Recipe) -> str:
    """`lora` or `full`, with `auto` settled."""
    return "full" if recipe.train.method == "full" else "lora"


def settled(recipe: Recipe) -> TrainConfig:
    """The recipe's `train` with what was left out settled by task."""
    generates, train = recipe.task == GENERATION, recipe.train
    rates = {"lora": 5e-4, "full": 5e-5} if generates else {"lora": 2e-3, "full": 1e-4}
    return replace(
        train,
        epochs=train.epochs or (3.0 if generates else 8.0),
        batch_size=train.batch_size or (4 if generates else 32),
        learning_rate=train.learning_rate or rates[method(recipe)],
    )


def settled_lora(recipe: Recipe) -> LoraConfig:
    """The recipe's `lora` with the dropout settled by task."""
    # the random numbers of dropout are a sixth of a decoder's training on CPUs
    default = 0.0 if recipe.task == GENERATION else 0.05
    given = recipe.lora.dropout
    return replace(recipe.lora, dropout=default if given is None else given)


@dataclass(frozen=True)
class SettledDistil(DistilConfig):
    """The recipe's `distil` with nothing left out."""

    epochs: float = 8.0
    learning_rate: float = 3e-4
    temperature: float = 2.0
    max_drop: float = 0.02


GENERATION_DISTIL = SettledDistil(epochs=3.0, learning_rate=2e-4, temperature=1.0, max_drop=0.25)


def settled_distil(recipe: Recipe) -> SettledDistil:
    """The recipe's `distil` with what was left out settled by task."""
    defaults = GENERATION_DISTIL if recipe.task == GENERATION else SettledDistil()
    stated = {f.name: getattr(recipe.distil, f.name) for f in fields(recipe.distil)}
    return replace(defaults, **{k: value for k, value in stated.items() if value is not None})


def default_max_tokens(recipe: Recipe) -> int:
    """The recipe's `max_tokens`, settled by task where it was left out."""
    return recipe.max_tokens or (1024 if recipe.task == GENERATION else 128)


class Training(Pass):
    """Sets context.training. Subclasses say what decides a training, and set it up."""

    name = "finetune"
    resumable = True

    def deciding(self, context: Context) -> dict[str, Any]:
        """The inputs beside model and recipe; also checks what must be there."""
        raise NotImplementedError

    def set_up(self, context: Context, checkpoints: Path) -> tuple[Any, Any, dict[str, Any]]:
        """(model, trainer, what else the history is to say)."""
        raise NotImplementedError

    def finish(self, trainer: Any) -> dict[str, Any]:
        """What the history is to say after the training."""
        return {}

    def inputs(self, context: Context) -> dict[str, Any] | None:
        deciding, recipe = self.deciding(context), context.recipe
        assert context.source and context.text
        if not is_trained(recipe):
            return None
        return {
            "model": context.source.digest,
            "text": encode(context.text),
            "train": encode(settled(recipe)),
            "lora": encode(settled_lora(recipe)) if method(recipe) == "lora" else None,
            "seed": recipe.seed,
            "precision": "bf16" if uses_bf16(recipe) else "fp32",
            "versions": versions("torch", "transformers", "peft", "accelerate"),
            **deciding,
        }

    def run(self, context: Context, folder: Path) -> None:
        recipe = context.recipe
        seed_everything(recipe.seed)
        started = time.monotonic()
        with torch_threads(recipe.threads):
            model, trainer, said = self.set_up(context, folder / CHECKPOINTS)
            trainer.train(resume_from_checkpoint=last_checkpoint(folder / CHECKPOINTS))
            epochs = epoch_rows(trainer.state.log_history)
            said |= self.finish(trainer)
        if hasattr(model.config, "use_cache"):  # which Trainer turned off
            assert context.source is not None
            model.config.use_cache = context.source.config.get("use_cache", True)
        name = "adapter" if method(recipe) == "lora" else "full"
        model.save_pretrained(folder / name)
        history = {
            "method": method(recipe),
            "seconds": round(time.monotonic() - started, 1),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "epochs": epochs,
            **said,
        }
        (folder / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    def load(self, context: Context, folder: Path) -> None:
        recipe = context.recipe
        if not is_trained(recipe):
            merged = "none" if recipe.adapter is None else "adapter"
            context.training = {"method": merged, "epochs": []}
            return
        context.training = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        context.training["folder"] = str(folder)
        for note in context.training.get("notes", ()):
            context.note(note)


def add_lora(model: Any, recipe: Recipe, linear: Sequence[str], in_full: Sequence[str]) -> Any:
    """Put LoRA adapters on those of the `linear` layers that the recipe wants; the modules named
    by `in_full` are trained as they are. Raises RecipeError when `lora.targets` names no layer."""
    import peft

    short = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wanted = recipe.lora.targets or short
    for name in wanted:
        if name not in short:
            raise RecipeError(
                f"lora.targets: the model has no linear layer {name!r}{nearest(name, short)}",
                hint=f"its linear layers are {', '.join(short)}",
            )
    config = peft.LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha or recipe.lora.rank,
        lora_dropout=settled_lora(recipe).dropout or 0.0,
        target_modules=[n for n in linear if n.rsplit(".", 1)[-1] in wanted],
        modules_to_save=list(in_full),
        bias="none",
    )
    return peft.get_peft_model(model, config)


def make_trainer(
    context: Context,
    checkpoints: Path,
    metric: str,
    arguments: dict[str, Any],
    *,
    train: TrainConfig | None = None,
    kind: Any = None,
    **parts: Any,
) -> Any:
    """Trainer with what all trainings have in common. `metric` decides on stopping early; `parts`
    go to Trainer, `arguments` over the common TrainingArguments. `train` is the recipe's where left
    out; `kind` is a subclass of Trainer."""
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    train = train or settled(context.recipe)
    early = train.early_stop > 0
    common: dict[str, Any] = dict(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=train.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        use_cpu=not torch.cuda.is_available(),
        bf16=uses_bf16(context.recipe),
        eval_strategy="epoch" if early else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=early,
        restore_callback_states_from_checkpoint=True,  # or early stopping would count anew
        metric_for_best_model=metric if early else None,
        logging_strategy="epoch",
        report_to=[],
        seed=context.recipe.seed,
        data_seed=context.recipe.seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    callbacks: list[Any] = [_progress_callback(context)]
    if early:
        callbacks.append(EarlyStoppingCallback(train.early_stop))
    trainer = (kind or Trainer)(
        args=TrainingArguments(**common | arguments), callbacks=callbacks, **parts
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results alone belong
    return trainer


def uses_bf16(recipe: Recipe) -> bool:
    """Whether training computes in bf16."""
    import torch

    if recipe.train.precision != "auto":
        return recipe.train.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capability = torch.backends.cpu.get_cpu_capability()
    return capability in ("AVX512", "AVX512_BF16", "AMX") and "avx512_bf16" in cpu_flags()


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state comes last."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the run was killed while it wrote this one
            continue
        whole[int(state["global_step"])] = path
    return str(whole[max(whole)]) if whole else None


SHOWN = ("loss", "eval_accuracy", "eval_micro_f1", "eval_token_loss")
KEPT = ("loss", "eval_loss", "eval_accuracy", "eval_macro_f1", "eval_micro_f1", "eval_token_loss")


def _progress_callback(context: Context) -> Any:
    from transformers import TrainerCallback

    class Show(TrainerCallback):
        detail = ""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            context.progress.advance(state.global_step, state.max_steps, self.detail)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **k: Any) -> None:
            for key in SHOWN:
                if logs and key in logs:
                    self.detail = f"{key} {float(logs[key]):.3f}"

    return Show()


def epoch_rows(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Trainer's log as one row an epoch; a loss over target tokens stands for Trainer's own, which
    averages over batches."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        epoch = round(entry["epoch"])
        row = rows.setdefault(epoch, {"epoch": epoch})
        for key in KEPT:
            if key in entry:
                row[key.replace("_token_", "_")] = round(float(entry[key]), 5)
    return list(rows.values())
