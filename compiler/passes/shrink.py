"""shrink: a smaller model learns from the one that was made so far, and takes its place.

FOLDER/step-N/       what a step has trained, and its checkpoints while it does
FOLDER/model/        the student, a plain Hugging Face directory
FOLDER/history.json  how it learned; written when all else is there
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.compiler.context import Context
from edgelm.compiler.distil.probes import text_batches
from edgelm.compiler.distil.teacher import Teacher
from edgelm.compiler.distil.texts import UNLABELLED, learning_rows
from edgelm.compiler.distil.trainer import Collate, Loss, Taught, trainer_class
from edgelm.compiler.hf import (
    load_model,
    load_tokenizer,
    pool,
    seed_everything,
    torch_threads,
    versions,
)
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.intake import find_model, read_source
from edgelm.compiler.passes.teach import has_hidden, measured
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.training import (
    CHECKPOINTS,
    epoch_rows,
    last_checkpoint,
    make_trainer,
    settled,
    settled_distil,
    uses_bf16,
)
from edgelm.runtime.errors import ModelError
from edgelm.runtime.files import replace_tree, write_atomic
from edgelm.runtime.schema import encode

if TYPE_CHECKING:
    from edgelm.compiler.distil.pruning import Shape

HISTORY = "history.json"


def is_shrunk(recipe: Recipe) -> bool:
    """Whether this compile ends in a smaller model."""
    prune = recipe.prune
    cuts = (prune.layers, prune.heads, prune.ffn, recipe.distil.student)
    return any(cut is not None for cut in cuts)


class Shrink(Pass):
    """Sets context.model_dir; context.training["shrink"] says how."""

    name = "shrink"
    resumable = True

    def inputs(self, context: Context) -> dict[str, Any]:
        recipe, prune = context.recipe, context.recipe.prune
        distil = encode(settled_distil(recipe))
        for name in ("max_drop", "student", "unlabelled"):  # limits; what the others stand for
            del distil[name]
        student = recipe.distil.student
        return {
            "teacher": context.digests["teach"],
            "prune": [prune.layers, prune.heads, prune.ffn],
            "measured": measured(recipe),
            "distil": distil,
            "student": None if student is None else read_source(_student(recipe)).digest,
            "batch_size": settled(recipe).batch_size,
            "train": encode(replace(recipe.train, method="full", epochs=None, learning_rate=None)),
            "seed": recipe.seed,
            "precision": "bf16" if uses_bf16(recipe) else "fp32",
            "versions": versions("torch", "transformers", "accelerate"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.taught and context.task
        if (folder / HISTORY).is_file():  # all but the steps' removal was done
            _remove_steps(folder)
            return
        recipe = context.recipe
        tokenizer = self.tokenizer(context)
        rows = self.rows(context, tokenizer)
        started = time.monotonic()
        seed_everything(recipe.seed)
        epochs: list[dict[str, float]] = []
        with torch_threads(recipe.threads):
            teacher = load_model(context.model_dir, context.task, new_head=False)
            generation, use_cache = _of_generation(teacher)
            said = {"texts": len(rows), "parameters_before": _n_parameters(teacher)}
            if recipe.distil.student is None:
                model, shapes = prune_layers(teacher, context)
            else:
                model, shapes = self.other(context, tokenizer, teacher), [None]
            del teacher
            for step, shape in enumerate(shapes, 1):
                place = folder / f"step-{step}"
                made = place / "model"
                if made.is_dir():
                    model = load_model(made, context.task, new_head=False)
                else:
                    if shape is not None:
                        model = self.cut(context, model, tokenizer, rows, shape)
                    self._train(context, place, model, tokenizer, rows, len(shapes))
                found = json.loads((place / "epochs.json").read_text(encoding="utf-8"))
                epochs += [{**row, "epoch": len(epochs) + i} for i, row in enumerate(found, 1)]
        if use_cache is not None:  # which Trainer turned off
            model.config.use_cache = use_cache
            model.generation_config = generation
        model.eval().save_pretrained(folder / "new")
        tokenizer.save_pretrained(folder / "new")
        replace_tree(folder / "new", folder / "model")
        said |= {
            "seconds": round(time.monotonic() - started, 1),
            "parameters": _n_parameters(model),
            "epochs": epochs,
        }
        write_atomic(folder / HISTORY, json.dumps(said, indent=1))
        _remove_steps(folder)

    def load(self, context: Context, folder: Path) -> None:
        context.model_dir = folder / "model"
        context.model_key = context.digests[self.name]
        said = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        context.training["shrink"] = said
        assert list(context.model_dir.glob("*.safetensors"))

    def _train(
        self,
        context: Context,
        place: Path,
        model: Any,
        tokenizer: Any,
        rows: list[dict[str, Any]],
        n_steps: int,
    ) -> None:
        """One step of `n_steps`; writes `model/`, which is there when it is whole."""
        assert context.taught is not None
        distil = settled_distil(context.recipe)
        train = replace(
            settled(context.recipe),
            epochs=epochs_of_step(distil.epochs, n_steps),
            learning_rate=distil.learning_rate,
            early_stop=0,
        )
        trainer = make_trainer(
            context,
            place / CHECKPOINTS,
            "loss",
            {"train_sampling_strategy": "group_by_length"},
            train=train,
            kind=trainer_class(self.loss(context)),
            model=model,
            train_dataset=rows,
            data_collator=Taught(self.collator(context, tokenizer), Teacher(context.taught)),
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(place / CHECKPOINTS))
        found = json.dumps(epoch_rows(trainer.state.log_history))
        (place / "epochs.json").write_text(found, encoding="utf-8")
        model.save_pretrained(place / "new")
        replace_tree(place / "new", place / "model")
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)

    def tokenizer(self, context: Context) -> Any:
        """The teacher's, which the student keeps."""
        assert context.model_dir is not None
        return load_tokenizer(context.model_dir)

    def rows(self, context: Context, tokenizer: Any) -> list[dict[str, Any]]:
        """What is learned, as the teacher was asked about it."""
        return learning_rows(context, tokenizer)

    def collator(self, context: Context, tokenizer: Any) -> Collate:
        """Of rows without their numbers."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer, return_tensors="pt")

    def loss(self, context: Context) -> Loss:
        """Of the student."""
        return loss_of(context)

    def other(self, context: Context, tokenizer: Any, teacher: Any) -> Any:
        """The student that is not a part of the teacher. Raises ModelError."""
        return load_student(context, tokenizer)

    def cut(
        self, context: Context, model: Any, tokenizer: Any, rows: list[Any], shape: Shape
    ) -> Any:
        """The model with the heads and columns of `shape`, those that matter most."""
        return cut(context, model, tokenizer, rows, shape)


def epochs_of_step(epochs: float, n_steps: int) -> float:
    """Of each of `n_steps` that share them out: whole ones, unless a part of one is asked for."""
    share = epochs / n_steps
    return float(math.ceil(share)) if share >= 1 and epochs % 1 == 0 else share


def _of_generation(teacher: Any) -> tuple[Any, bool | None]:
    """How a decoder answers, which its student is to do alike; None of others."""
    found = getattr(teacher, "generation_config", None)
    return (found, None) if found is None else (found, bool(teacher.config.use_cache))


def prune_layers(model: Any, context: Context) -> tuple[Any, list[Shape]]:
    """The model without the layers that are left out; what each step is to leave of the rest."""
    from edgelm.compiler.distil.pruning import keep_layers, shape_of, smaller

    recipe = context.recipe
    whole = shape_of(model.config)
    goal = smaller(whole, recipe.prune)
    if goal.layers < whole.layers:
        model = keep_layers(model, context.kept_layers)
    n_steps = recipe.distil.steps
    steps = [_between(whole, goal, step / n_steps) for step in range(1, n_steps + 1)]
    return model, steps


def loss_of(context: Context) -> Loss:
    """The loss of a student of this compile; without the teacher's answers that on the labels."""
    from edgelm.compiler.distil import losses, relations

    assert context.task is not None
    task, distil = context.task, settled_distil(context.recipe)
    soft = losses.soft_sets if task.problem == "multi_label" else losses.soft_labels
    uses_hidden = has_hidden(context.recipe)

    def loss(model: Any, inputs: dict[str, Any], said: dict[str, Any]) -> tuple[Any, Any]:
        labels = inputs.pop("labels", None)
        mask = inputs["attention_mask"]
        with ExitStack() as stack:
            seen = stack.enter_context(relations.watched(model)) if distil.relation_weight else {}
            outputs = model(**inputs, output_hidden_states=uses_hidden)
        if task.kind == "feature-extraction":
            found = pool(outputs.last_hidden_state, mask, task.pooling)
            total = losses.vectors(found, said["vectors"])
        else:
            total = soft(outputs.logits, said["logits"], distil.temperature)
            if distil.label_weight:
                total = total + distil.label_weight * label_loss(outputs.logits, labels)
        if uses_hidden:
            states = outputs.hidden_states[1:]  # (B, T, H) behind each layer
            parts = [
                losses.hidden_states(state[mask.bool()], said["hidden"][:, k])
                for k, state in enumerate(states)
            ]
            total = total + distil.hidden_weight * sum(parts) / len(parts)
        if distil.relation_weight:
            found = relations.loss(model, seen, said["relations"], mask)
            total = total + distil.relation_weight * found
        return total, outputs

    return loss


def label_loss(logits: Any, labels: Any) -> Any:
    """Mean cross-entropy of those texts that have labels (B,), or label sets (B, C); 0 when none
    has."""
    import torch

    if labels.ndim == 1:
        known = labels != UNLABELLED
        losses = torch.nn.functional.cross_entropy(
            logits.float(), labels, ignore_index=UNLABELLED, reduction="none"
        )
    else:
        known = labels[:, 0] != UNLABELLED
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), labels.clamp(min=0), reduction="none"
        ).mean(-1)
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def cut(context: Context, model: Any, tokenizer: Any, rows: list[Any], shape: Shape) -> Any:
    """The model with the heads and columns of `shape`, those that matter most on some rows."""
    from edgelm.compiler.distil import pruning

    if pruning.shape_of(model.config) == shape:
        return model
    known = [row for row in rows if np.ravel(row.get("labels", UNLABELLED))[0] != UNLABELLED]
    batches = text_batches(known or rows, tokenizer, context.recipe.seed)

    def loss(outputs: Any, batch: dict[str, Any]) -> Any:
        return label_loss(outputs.logits, batch["labels"]) * len(batch["labels"])

    return pruning.keep_best(model, pruning.measure(model, batches, loss if known else None), shape)


def _between(whole: Shape, goal: Shape, part: float) -> Shape:
    """Part of the way; at 1 the goal."""

    def at(a: int, b: int) -> int:
        return b if part == 1 else round(a + (b - a) * part)

    return replace(goal, heads=at(whole.heads, goal.heads), ffn=at(whole.ffn, goal.ffn))


def load_student(context: Context, tokenizer: Any, *, padded: bool = True) -> Any:
    """`distil.student` with a head for the task. Raises ModelError for another vocabulary."""
    assert context.task and context.text
    folder = _student(context.recipe)
    source = read_source(folder)
    if load_tokenizer(folder, padded=padded).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"distil.student: {folder}: its vocabulary is not that of the teacher",
            hint="take a student with the teacher's tokenizer, or prune the model itself",
        )
    if source.max_tokens < context.text.max_tokens:
        raise ModelError(
            f"distil.student: {folder}: it takes {source.max_tokens} tokens, texts have up to "
            f"{context.text.max_tokens}",
            hint=f"state --max-tokens {source.max_tokens}",
        )
    model = load_model(folder, context.task, new_head=True)
    size = context.task.dimensions
    if context.task.kind == "feature-extraction" and model.config.hidden_size != size:
        raise ModelError(
            f"distil.student: {folder}: its vectors have {model.config.hidden_size} numbers, those "
            f"of the teacher {size}",
            hint=f"take a student with vectors of {size} numbers, or prune the model itself",
        )
    return model


def _remove_steps(folder: Path) -> None:
    for place in folder.glob("step-*"):
        shutil.rmtree(place)


def _student(recipe: Recipe) -> Path:
    assert recipe.distil.student is not None
    return find_model(replace(recipe, model=recipe.distil.student, revision=None))


def _n_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
