"""What a variant is trained on, and against what of the float model, by task.

Letters: B rows, C classes, N targets, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgelm.compiler.chat.finetune import check_samples
from edgelm.compiler.chat.packing import can_pack, collate, n_predicted, packed_rows, single_rows
from edgelm.compiler.chat.samples import render_all
from edgelm.compiler.chat.student import target_logits
from edgelm.compiler.context import Context, as_text
from edgelm.compiler.distil import losses
from edgelm.compiler.distil.teacher import Array, Values, token_arrays, token_values
from edgelm.compiler.distil.texts import single_texts, tokenized
from edgelm.compiler.distil.trainer import Collate, Loss
from edgelm.compiler.hf import load_tokenizer, pool
from edgelm.runtime.tokenizer import Text

TEMPERATURE = 2.0  # of a classifier's answers

Row = dict[str, Any]


@dataclass(frozen=True)
class Lesson:
    """Of one compile."""

    rows: list[Row]  # for `collate`
    collate: Collate
    arrays: list[Array]  # of the float model's answers
    places: list[int]  # of each row in them
    answer: Callable[[Any, dict[str, Any]], Values]  # (model, batch)
    loss: Loss
    strategy: str  # of Trainer's sampling


def make_lesson(context: Context, model: Any) -> Lesson:
    """The training data as the task wants it. Raises DataError, ModelError."""
    assert context.task is not None
    if context.task.kind == "text-generation":
        return _of_tokens(context, model)
    return _of_texts(context, model)


def inputs_of(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without what is to be learnt."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _of_tokens(context: Context, model: Any) -> Lesson:
    """Generation: the distributions that predict each target."""
    assert context.chat and context.text and context.model_dir
    limit = context.text.max_tokens
    tokenizer = load_tokenizer(context.model_dir, padded=False)
    samples = render_all(context.chat.train, tokenizer, limit)
    check_samples(samples, model, "training", limit)
    is_packed = context.recipe.train.packing and can_pack(model, samples.samples)
    rows: list[Row] = [
        *(packed_rows(samples.samples, limit) if is_packed else single_rows(samples.samples))
    ]

    def loss(student: Any, batch: dict[str, Any], said: dict[str, Any]) -> tuple[Any, Any]:
        found, outputs = target_logits(student, batch)
        return losses.token_divergence(found, said["log_probs"], said.get("ids")), outputs

    return Lesson(
        rows,
        partial(collate, pad_id=context.text.pad_id),
        token_arrays(int(model.get_input_embeddings().num_embeddings)),
        [n_predicted(row) for row in rows],
        lambda model, batch: token_values(target_logits(model, batch)[0]),
        loss,
        "random" if is_packed else "group_by_length",
    )


def _of_texts(context: Context, model: Any) -> Lesson:
    """Classification: logits (B, C). Embeddings: vectors (B, H)."""
    assert context.data and context.task and context.text and context.model_dir
    from transformers import DataCollatorWithPadding

    task, tokenizer = context.task, load_tokenizer(context.model_dir)
    train = context.data.train
    texts: list[Text] = [as_text(example) for example in train]
    if task.kind == "feature-extraction":
        texts = [*single_texts(train)]
    rows: list[Row] = [tokenized(tokenizer, text, context.text) for text in texts]

    def answers(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        outputs = model(**batch)
        if task.kind == "feature-extraction":
            return pool(outputs.last_hidden_state, batch["attention_mask"], task.pooling), outputs
        return outputs.logits, outputs

    def loss(student: Any, batch: dict[str, Any], said: dict[str, Any]) -> tuple[Any, Any]:
        found, outputs = answers(student, batch)
        if task.kind == "feature-extraction":
            return losses.vectors(found, said["answers"]), outputs
        soft = losses.soft_sets if task.problem == "multi_label" else losses.soft_labels
        return soft(found, said["answers"], TEMPERATURE), outputs

    width = len(task.labels) if task.labels else int(model.config.hidden_size)
    return Lesson(
        rows,
        DataCollatorWithPadding(tokenizer, return_tensors="pt"),
        [Array("answers", "float32", (width,))],
        [1] * len(rows),
        lambda model, batch: {"answers": answers(model, batch)[0].float().numpy()},
        loss,
        "group_by_length",
    )
