"""The texts that a student learns on: those of the training data, and others without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, as_text, truth_matrix
from edgelm.compiler.distil.teacher import ROW
from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example
from edgelm.runtime.lines import text_lines
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.runtime.tokenizer import Text

UNLABELLED = -100  # the label of a text without one; of label sets, of each label


def learning_rows(context: Context, tokenizer: Any) -> list[dict[str, Any]]:
    """Tokenized rows with `labels` (of classifiers) and ROW, in a fixed order.

    Raises DataError for texts that cannot be read, or when there are none."""
    assert context.task and context.data and context.text
    task, text = context.task, context.text
    examples = [*context.data.train, *(_bare(t) for t in unlabelled_texts(context))]
    if task.kind == "feature-extraction":
        examples = [_bare(t) for t in single_texts(examples)]
    if not examples:
        raise DataError("no text is left to ask the teacher about")
    rows: list[dict[str, Any]] = []
    labels = _labels(task, examples)
    for i, example in enumerate(examples):
        encoded = tokenized(tokenizer, as_text(example), text)
        given = {} if labels is None else {"labels": labels[i]}
        rows.append({**encoded, **given, ROW: i})
    return rows


def tokenized(tokenizer: Any, text: Text, limits: TextLimits) -> dict[str, Any]:
    """A row of a text or a pair, cut, without padding."""
    parts = text if isinstance(text, tuple) else (text,)
    found = tokenizer(
        *parts,
        truncation=True,
        max_length=limits.max_tokens,
        return_token_type_ids=limits.type_ids,
    )
    return dict(found)


def single_texts(examples: Sequence[Example]) -> list[str]:
    """The texts of embeddings: both sides of a pair are texts of their own."""
    return [text for e in examples for text in (e.text, e.pair) if text is not None]


def unlabelled_texts(context: Context) -> list[str]:
    """The lines of `distil.unlabelled` that are not empty. Raises DataError."""
    assert context.task is not None
    given = context.recipe.distil.unlabelled
    if given is None:
        return []
    if context.task.pair:
        raise DataError(
            "distil.unlabelled: single texts, but this model answers pairs", path=given,
            hint="leave it out",
        )  # fmt: skip
    return [line for line in text_lines(Path(given).expanduser()) if line.strip()]


def _bare(text: str) -> Example:
    return Example(text, pair=None, labels=None, score=None, path=Path(), row=0)


def _labels(task: Task, examples: list[Example]) -> list[Any] | None:
    if task.kind == "feature-extraction":
        return None
    is_set = task.problem == "multi_label"
    truth = truth_matrix(task, tuple(examples))
    found: list[Any] = []
    for example, given in zip(examples, truth, strict=True):
        if example.labels is None:
            found.append([float(UNLABELLED)] * len(given) if is_set else UNLABELLED)
        else:
            found.append(given.astype(np.float32).tolist() if is_set else int(given.argmax()))
    return found
