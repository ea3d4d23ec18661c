"""Metrics of a loaded bundle on labelled data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example, read_examples
from edgelm.runtime.metrics import classification_metrics, cosine, spearman
from edgelm.runtime.predictions import label_matrix
from edgelm.runtime.schema import nearest
from edgelm.runtime.text_model import TextModel


@dataclass(frozen=True)
class Evaluation:
    """What `edgelm eval` tells. `confusions`: (given, predicted, texts), most frequent first."""

    variant: str
    n: int
    n_truncated: int
    metrics: dict[str, float]
    confusions: tuple[tuple[str, str, int], ...] = ()


def evaluate(
    model: TextModel,
    data: Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    label_separator: str = ";",
) -> Evaluation:
    """Compare the model's answers with the data's. Raises DataError."""
    task = model.task
    classifies = task.kind == "text-classification"
    read = read_examples(
        data,
        text=text,
        pair=pair,
        label=label,
        multi_label=task.problem == "multi_label" if classifies else None,
        label_separator=label_separator,
        need_label=classifies,
    )
    examples = read.examples
    if not classifies:
        return _evaluate_embeddings(model, examples, data)
    if task.pair and read.columns.pair is None:
        raise DataError(
            "the bundle answers pairs, and there is no column of second texts",
            path=data,
            hint="name it with --pair-column",
        )
    truth = _truth(model, examples)
    texts = [(e.text, e.pair or "") if task.pair else e.text for e in examples]
    outputs = model.outputs(texts)
    confusions: tuple[tuple[str, str, int], ...] = ()
    if task.problem == "single_label":
        given = truth.argmax(axis=1)
        found = label_matrix(task, outputs.values).argmax(axis=1)
        wrong = Counter((int(g), int(f)) for g, f in zip(given, found, strict=True) if g != f)
        confusions = tuple(
            (task.labels[g], task.labels[f], n) for (g, f), n in wrong.most_common(10)
        )
    metrics = classification_metrics(task, truth, outputs.values)
    return Evaluation(
        model.variant.name, len(examples), sum(outputs.truncated), metrics, confusions
    )


def _truth(
    model: TextModel, examples: list[Example]
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    index = {name: i for i, name in enumerate(model.labels)}
    truth = np.zeros((len(examples), len(index)), bool)
    for row, example in enumerate(examples):
        for name in example.labels or ():
            if name not in index:
                raise DataError(
                    f"the bundle knows no label {name!r}{nearest(name, index)}",
                    path=example.path,
                    row=example.row,
                )
            truth[row, index[name]] = True
    return truth


def _evaluate_embeddings(model: TextModel, examples: list[Example], data: Path) -> Evaluation:
    scored = [(e, e.pair, e.score) for e in examples if e.pair is not None and e.score is not None]
    if len(scored) < 2 or len(scored) != len(examples):
        raise DataError(
            "embeddings are judged on pairs of texts with a similarity score",
            path=data,
            hint="give columns such as text, text_pair and score",
        )
    n = len(scored)
    outputs = model.outputs([e.text for e, _, _ in scored] + [pair for _, pair, _ in scored])
    similarity = cosine(outputs.values[:n], outputs.values[n:])
    value = spearman(np.array([score for _, _, score in scored]), similarity)
    return Evaluation(model.variant.name, n, sum(outputs.truncated), {"spearman": value})
