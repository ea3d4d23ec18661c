"""transformers' Trainer with a teacher: each batch brings the teacher's answers with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgelm.compiler.distil.teacher import PREFIX, ROW, Teacher

# (student, its inputs, the teacher's answers by name) -> (loss, the student's outputs); a mean over
# the batch. The answers are empty for rows that the teacher was not asked, such as those of the
# evaluation.
Loss = Callable[[Any, dict[str, Any], dict[str, Any]], tuple[Any, Any]]
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Taught:
    """A collator that adds the teacher's answers to the batch of another."""

    def __init__(self, collate: Collate, teacher: Teacher) -> None:
        self.collate = collate
        self.teacher = teacher

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Rows are those of `collate`; the key ROW of a row is its number with the teacher."""
        import torch

        batch = self.collate([{k: v for k, v in row.items() if k != ROW} for row in rows])
        numbers = [row[ROW] for row in rows if ROW in row]
        if not numbers:
            return batch
        said = self.teacher.rows(numbers)
        return {**batch, **{f"{PREFIX}{name}": torch.from_numpy(v) for name, v in said.items()}}


def trainer_class(loss: Loss) -> Any:
    """A subclass of Trainer whose loss, in training and evaluation, is `loss`; for `make_trainer`,
    whose `data_collator` is then a Taught."""
    from transformers import Trainer

    class TaughtTrainer(Trainer):
        loss_is_scaled_for_ga = False  # a mean: Trainer divides by the accumulated batches

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            own = {k: v for k, v in inputs.items() if not k.startswith(PREFIX)}
            said = {k.removeprefix(PREFIX): v for k, v in inputs.items() if k.startswith(PREFIX)}
            value, outputs = loss(model, own, said)
            return (value, outputs) if return_outputs else value

    return TaughtTrainer
