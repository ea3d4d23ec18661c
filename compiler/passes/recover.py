"""recover: before a variant is lowered, its weights are found anew on its quantizer's grid.

Writes `model/`, a Hugging Face directory of values that the variant's files hold as they are, and
`recovery.json`. The float model's answers and the last checkpoint stay in the partial folder, so a
killed run goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.compiler.context import Context
from edgelm.compiler.distil.teacher import ROW, Values, record
from edgelm.compiler.distil.trainer import Taught, trainer_class
from edgelm.compiler.hf import load_model, seed_everything, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.lower import Lower
from edgelm.compiler.recover.settings import How, training
from edgelm.compiler.training import CHECKPOINTS, last_checkpoint, make_trainer, uses_bf16
from edgelm.runtime.errors import ModelError
from edgelm.runtime.schema import encode
from edgelm.targets import get_target

if TYPE_CHECKING:
    from edgelm.compiler.recover.lessons import Lesson

TEACHER = "teacher"  # folder of the float model's answers
_ROWS = 8  # asked at once
_SAVES = 4  # checkpoints of a training, of which the last is kept


class Recover(Pass):
    """Sets context.recovered[variant] and context.recoveries[variant]."""

    resumable = True

    def __init__(self, lower: Lower, how: How) -> None:
        self.lower = lower
        self.how = how
        self.variant = lower.variant
        self.name = f"recover {self.variant}"

    def inputs(self, context: Context) -> dict[str, Any]:
        recipe = context.recipe
        assert context.task and context.text
        trained = self.how == "train"
        return {
            "lower": self.lower.plain_inputs(context),
            "data": context.data_digest,
            "task": encode(context.task),
            "text": encode(context.text),
            "how": self.how,
            "train": encode(training(recipe)) if trained else None,
            "packing": recipe.train.packing,
            "rounding_tokens": recipe.recover.rounding_tokens,
            "seed": recipe.seed,
            "precision": "bf16" if trained and uses_bf16(recipe) else "fp32",
            "versions": versions("torch", "transformers", "tokenizers", "accelerate"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.task
        started = time.monotonic()
        seed_everything(context.recipe.seed)
        model_dir = context.model_dir
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with torch_threads(context.recipe.threads):
            target = get_target(self.lower.target)
            grids = target.grids(self.lower.request(context, scratch))
            model = load_model(model_dir, context.task, new_head=False)
            said = self._find(context, folder, model, grids)
        _save(model, model_dir, folder / "model")
        said = {"method": self.how, **said, "seconds": round(time.monotonic() - started, 1)}
        (folder / "recovery.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
        for name in (CHECKPOINTS, TEACHER, scratch.name):
            shutil.rmtree(folder / name, ignore_errors=True)

    def load(self, context: Context, folder: Path) -> None:
        said = json.loads((folder / "recovery.json").read_text(encoding="utf-8"))
        context.recovered[self.variant] = folder / "model"
        context.recoveries[self.variant] = said
        assert list(context.recovered[self.variant].glob("*.safetensors"))
        how = "rounded" if self.how == "round" else f"trained for {said['steps']} steps"
        context.note(
            f"{self.variant} is recovered: its weights were {how} against the float model, within "
            "what its quantizer can hold"
        )

    def _find(self, context: Context, folder: Path, model: Any, grids: Any) -> dict[str, Any]:
        """Leave values of the grids in the model; what is to be said of it."""
        import torch

        from edgelm.compiler.recover.lessons import inputs_of, make_lesson
        from edgelm.compiler.recover.optimizer import GridAdamW
        from edgelm.compiler.recover.rounding import latents_near, round_model

        weights = dict(model.named_parameters())
        grids = grids.within(model.base_model_prefix, weights)
        unknown = (grids.matrices.keys() | grids.fixed) - weights.keys()
        if unknown:
            raise ModelError(f"{self.variant}: the model has no parameter {min(unknown)}")
        lesson = plain = make_lesson(context, model)
        resumed = last_checkpoint(folder / CHECKPOINTS)
        if self.how == "train":
            lesson = self._ask(context, folder, model, lesson)
        values: Mapping[str, Any] = {}
        if resumed is None:
            values = round_model(
                model,
                grids.matrices,
                lambda: map(inputs_of, self._calibration(context, plain)),
                lambda done, total: context.progress.advance(done, total, "rounding"),
            )
        latents = {
            name: latents_near(weights[name].data, values[name], grid)
            if name in values
            else weights[name].data.clone()
            for name, grid in grids.matrices.items()
        }
        for name in grids.fixed:
            weights[name].requires_grad_(False)
        trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
        train = training(context.recipe)
        optimizer = GridAdamW(
            trained, grids.matrices, latents, lr=train.learning_rate, weight_decay=0.0
        )  # the model's matrices are rounded from here on
        if self.how == "round":
            return {"n_matrices": len(grids.matrices)}
        _turn_off_dropout(model)
        trainer = self._trainer(context, folder, model, lesson, optimizer)
        trainer.train(resume_from_checkpoint=resumed)
        for name, grid in grids.matrices.items():
            assert torch.equal(grid.round(weights[name].data), weights[name]), name
        return {
            "n_matrices": len(grids.matrices),
            "steps": trainer.state.global_step,
            "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        }

    def _ask(self, context: Context, folder: Path, model: Any, lesson: Lesson) -> Lesson:
        """The lesson with the float model's answers in its batches."""
        import torch

        order = sorted(range(len(lesson.rows)), key=lambda i: len(lesson.rows[i]["input_ids"]))
        batches = [order[start : start + _ROWS] for start in range(0, len(order), _ROWS)]

        def answer(numbers: Sequence[int]) -> Values:
            with torch.inference_mode():
                return lesson.answer(model, lesson.collate([lesson.rows[i] for i in numbers]))

        teacher = record(
            folder / TEACHER,
            lesson.arrays,
            lesson.places,
            batches,
            answer,
            lambda done, total: context.progress.advance(done, total, "the float model's answers"),
        )
        rows = [{**row, ROW: i} for i, row in enumerate(lesson.rows)]
        return replace(lesson, rows=rows, collate=Taught(lesson.collate, teacher))

    def _calibration(self, context: Context, lesson: Lesson) -> Iterator[dict[str, Any]]:
        """Batches of a seeded sample of the rows, the same ones each time."""
        order = np.random.default_rng(context.recipe.seed).permutation(len(lesson.rows))
        left = context.recipe.recover.rounding_tokens
        for start in range(0, len(order), _ROWS):
            rows = [lesson.rows[i] for i in order[start : start + _ROWS]]
            yield lesson.collate(rows)
            left -= sum(len(row["input_ids"]) for row in rows)
            if left <= 0:
                return

    def _trainer(
        self, context: Context, folder: Path, model: Any, lesson: Lesson, optimizer: Any
    ) -> Any:
        train = training(context.recipe)
        assert train.batch_size and train.epochs
        n_batches = -(-len(lesson.rows) // train.batch_size)
        n_steps = int(train.epochs * n_batches / train.gradient_accumulation)
        return make_trainer(
            context,
            folder / CHECKPOINTS,
            "loss",
            {
                "save_strategy": "steps",
                "save_steps": max(1, n_steps // _SAVES),
                "save_total_limit": 1,
                "train_sampling_strategy": lesson.strategy,
            },
            train=train,
            kind=trainer_class(lesson.loss),
            model=model,
            train_dataset=lesson.rows,
            data_collator=lesson.collate,
            optimizers=(optimizer, None),
        )


def _turn_off_dropout(model: Any) -> None:
    """The float model answered without, and its answers are what is to be learned."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _save(model: Any, model_dir: Path, folder: Path) -> None:
    """The model as it is now, with all other files of `model_dir`."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for path in model_dir.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
