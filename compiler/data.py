"""The data of a compile: read, checked, split, and cleared of texts that stand on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgelm.compiler.dataset import DataReport, Dataset
from edgelm.compiler.datasets_dir import Part
from edgelm.compiler.labels import SHOWN, check_labels, find_labels, to_model_labels
from edgelm.compiler.sections import DataConfig
from edgelm.compiler.sources import data_paths, open_records
from edgelm.compiler.split import Overlap, contradictions, drop_overlap, stratified_split
from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example, Examples, collect_examples
from edgelm.runtime.manifest import TaskKind


def load_dataset(
    config: DataConfig,
    *,
    task: TaskKind,
    trained: bool,
    model_labels: tuple[str, ...] | None,
    seed: int,
) -> Dataset:
    """Read training and evaluation data.

    Without evaluation data a stratified part of the training data is held out (a directory of
    `datasets` may bring a split of its own). Trained: labels are those of the training data.
    Not trained: labels are `model_labels`, training data is optional, and beside evaluation data it
    gives texts only. Evaluation texts that stand in the training data are left out, counted and
    reported. For feature-extraction labels are not read, scores of pairs are, and `config.label`
    names their column.

    Raises DataError, with file and row, for all that read_examples refuses, and for: no data, fewer
    than two labels, unknown labels, pairs on one side only, nothing left to evaluate on.
    MissingExtra for parquet or `datasets` without their packages.
    """
    reader = _Reader(config, classifies=task == "text-classification")
    found = reader.both(trained)
    truth = found.truth  # the side that decides on labels and columns
    labels, notes = _settle_labels(found, trained, model_labels) if reader.classifies else ((), [])
    overlaps: list[Overlap] = []
    if found.eval is None:
        train, held_out = stratified_split(truth.examples, config.eval_fraction, seed)
        n = len(truth.examples)
        notes.append(f"{len(held_out)} of {n} texts were held out to evaluate on (seed {seed})")
    else:
        train = found.train.examples if found.train else []
        held_out, overlaps = drop_overlap(train, found.eval.examples)
        notes += overlap_notes(overlaps, len(found.eval.examples))
    if not held_out:
        why = "all of them stand in the training data" if overlaps else "too few to hold one out"
        raise DataError(
            f"no text is left to evaluate on: {why}", path=config.eval or config.train,
            hint="give other texts with --eval FILE",
        )  # fmt: skip
    notes += _coverage(labels, train if trained else None, held_out)
    report = DataReport(
        n_train=len(train),
        n_eval=len(held_out),
        n_overlap=len(overlaps),
        overlap_examples=tuple(overlaps[:SHOWN]),
        label_counts=_count(labels, held_out if truth is found.eval else train),
        notes=tuple(notes),
        columns=truth.columns,
    )
    return Dataset(
        train=tuple(train),
        eval=tuple(held_out),
        labels=labels,
        problem="multi_label" if truth.multi_label else "single_label",
        pair=truth.columns.pair is not None,
        report=report,
    )


@dataclass(frozen=True)
class _Found:
    """What the files hold, before labels are settled and texts are held out."""

    train: Examples | None
    eval: Examples | None
    truth: Examples


@dataclass(frozen=True)
class _Reader:
    config: DataConfig
    classifies: bool

    def both(self, trained: bool) -> _Found:
        """Read what there is of training and evaluation data."""
        train_path, eval_path = data_paths(self.config, trained)
        if eval_path is None:
            assert train_path is not None
            train = self.read(train_path, "train")
            return _Found(train, None, train)
        if train_path is None:
            held_out = self.read(eval_path, "eval")
            return _Found(None, held_out, held_out)
        if trained:
            train = self.read(train_path, "train")
            held_out = self.read(
                eval_path, "eval", multi_label=train.multi_label if self.classifies else None
            )
        else:
            held_out = self.read(eval_path, "eval")
            train = self.read(train_path, "train", texts_only=True)
        if self.classifies and (train.columns.pair is None) != (held_out.columns.pair is None):
            raise DataError(
                f"{train_path} and {eval_path}: one holds pairs of texts, the other single texts",
                hint="name the columns with --text-column and --pair-column",
            )
        return _Found(train, held_out, train if trained else held_out)

    def read(
        self, path: Path, part: Part, *, texts_only: bool = False, multi_label: bool | None = None
    ) -> Examples:
        config = self.config
        truth = None if texts_only else config.label
        return collect_examples(
            open_records(path, part),
            path=path,
            text=config.text,
            pair=config.pair,
            label=truth if self.classifies else None,
            score=None if self.classifies else truth,
            multi_label=config.multi_label if multi_label is None else multi_label,
            label_separator=config.label_separator,
            need_label=self.classifies and not texts_only,
        )


def _settle_labels(
    found: _Found, trained: bool, model_labels: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """The labels, and notes; examples are changed in place to carry the model's own names."""
    truth = found.truth.examples
    if trained or model_labels is None:
        labels = find_labels(truth, truth[0].path)
        check_labels(found.eval.examples if found.eval else [], labels)
        return labels, _disagreement(truth) if trained else []
    truth[:], notes = to_model_labels(truth, model_labels)
    return model_labels, notes


def overlap_notes(overlaps: list[Overlap], n_eval: int) -> list[str]:
    """What is said of evaluation texts that were left out."""
    if not overlaps:
        return []
    o = overlaps[0]
    return [
        f"{len(overlaps)} of {n_eval} evaluation texts also stand in the training data and are "
        f"left out of the evaluation; the first: {o.eval_path}, row {o.eval_row} is "
        f"{o.train_path}, row {o.train_row}"
    ]


def _disagreement(train: list[Example]) -> list[str]:
    found = contradictions(train)
    if not found:
        return []
    said = " and ".join(
        f"{e.path}, row {e.row} ({', '.join(e.labels or ()) or 'none'})" for e in found[0]
    )
    return [f"{len(found)} training texts stand with different labels; the first: {said}"]


def _coverage(
    labels: tuple[str, ...], train: list[Example] | None, held_out: list[Example]
) -> list[str]:
    """Notes on labels that cannot be evaluated, or hardly be learnt."""
    notes: list[str] = []
    missing = [label for label, n in _count(labels, held_out).items() if n == 0]
    if missing:
        notes.append(f"{_listed(missing)} without a text to evaluate on")
    rare = [label for label, n in _count(labels, train or []).items() if n == 1]
    if train is not None and rare:
        notes.append(f"{_listed(rare)} with a single text to train on")
    return notes


def _count(labels: tuple[str, ...], examples: list[Example]) -> dict[str, int]:
    counts = Counter(label for example in examples for label in example.labels or ())
    return {label: counts[label] for label in labels}


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    noun = "label" if len(labels) == 1 else "labels"
    return f"{len(labels)} {noun} ({', '.join(labels[:SHOWN])}{more})"


__all__ = ["DataReport", "Dataset", "Overlap", "load_dataset"]
