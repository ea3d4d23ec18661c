"""The section on how good the answers are, by task: labels, label sets, vectors."""

from __future__ import annotations

import numpy as np

from edgelm.compiler.report.blocks import (
    Block,
    Details,
    Figure,
    Figures,
    Paragraph,
    Section,
    Table,
    row,
)
from edgelm.compiler.report.data import EncoderData
from edgelm.compiler.report.heatmap import MAX_COMPACT, MAX_FULL, compact_heatmap, full_heatmap
from edgelm.compiler.report.plots import histogram_floor, histogram_plot, reliability_plot
from edgelm.compiler.report.stats import (
    Bools,
    Counts,
    best_variant,
    calibration_error,
    confused_pairs,
    confusion,
    label_scores,
    reliability,
    worst_first,
)
from edgelm.compiler.report.svg import series
from edgelm.compiler.report.text import DASH, count, decimal, one_line, plural, shorten
from edgelm.runtime.manifest import Variant
from edgelm.runtime.metrics import cosine

PAIRS_SHOWN = 20
LABELS_SHOWN = 15


def quality(data: EncoderData) -> Section:
    """Empty where no variant ran."""
    if data.manifest.task.kind == "feature-extraction":
        return Section("vectors", "Vectors", tuple(_vectors(data)))
    best = best_variant(data)
    if best is None or data.truth is None or not len(data.truth):
        return Section("labels", "Labels", ())
    blocks: list[Block] = []
    if data.manifest.task.problem == "single_label":
        blocks += _confusion(data, data.truth, best)
    blocks += _label_table(data, data.truth, best)
    if data.manifest.task.problem == "single_label":
        blocks += _calibration(data, data.truth, best)
    return Section("labels", "Labels", tuple(blocks))


def _confusion(data: EncoderData, truth: Bools, best: Variant) -> list[Block]:
    labels = data.manifest.task.labels
    matrix = confusion(truth, data.outputs[best.name])
    wrong = int(matrix.sum() - np.trace(matrix))
    says = (
        f"Answers of {best.name} against the labels of the evaluation data: "
        f"{count(wrong)} of {plural(int(matrix.sum()), 'text')} wrong."
    )
    if len(labels) <= MAX_FULL:
        says += " Rows are the data's labels, columns the answers, the shade is the row's share."
        return [Figures((Figure(full_heatmap(labels, matrix), says, wide=True),))]
    blocks: list[Block] = []
    if len(labels) <= MAX_COMPACT:
        more = " Rows are the data's labels, columns the answers, both in the order of the bundle."
        blocks.append(Figures((Figure(compact_heatmap(labels, matrix), says + more, wide=True),)))
    else:
        blocks.append(Paragraph(says))
    return [*blocks, *_pairs(labels, matrix)]


def _pairs(labels: tuple[str, ...], matrix: Counts) -> list[Block]:
    pairs = confused_pairs(matrix)
    totals = matrix.sum(axis=1)
    rows = tuple(
        row(labels[i], labels[j], count(n), f"{n / int(totals[i]):.0%}")
        for i, j, n in pairs[:PAIRS_SHOWN]
    )
    if not rows:
        return []
    caption = "The pairs of labels most often confused"
    caption += f", {len(rows)} of {len(pairs)}." if len(pairs) > len(rows) else "."
    head = ("label in the data", "answered", "texts", "of the label's")
    return [Table(head, rows, n_text=2, caption=caption)]


def _label_table(data: EncoderData, truth: Bools, best: Variant) -> list[Block]:
    task = data.manifest.task
    ours = label_scores(task, truth, data.outputs[best.name])
    theirs = {s.label: s.f1 for s in label_scores(task, truth, data.reference)}
    rows = [
        row(
            s.label, decimal(s.f1, 3), decimal(theirs[s.label], 3), decimal(s.precision, 3),
            decimal(s.recall, 3), count(s.support),
        )
        for s in worst_first(ours)
    ]  # fmt: skip
    head = ("label", "F1", "F1 of the reference", "precision", "recall", "texts")
    caption = f"Each label as {best.name} answers it, lowest F1 first."
    if len(rows) <= LABELS_SHOWN:
        return [Table(head, tuple(rows), caption=caption)]
    rest = Table(head, tuple(rows[LABELS_SHOWN:]))
    return [
        Table(head, tuple(rows[:LABELS_SHOWN]), caption=caption),
        Details(f"The other {plural(len(rows) - LABELS_SHOWN, 'label')}", (rest,)),
    ]


def _calibration(data: EncoderData, truth: Bools, best: Variant) -> list[Block]:
    task = data.manifest.task
    bins = {
        name: reliability(task, truth, outputs)
        for name, outputs in {"reference": data.reference, **data.outputs}.items()
    }
    if not bins[best.name]:
        return []
    index = [v.name for v in data.manifest.variants].index(best.name)
    drawn = [(best.name, bins[best.name], series(index)), ("reference", bins["reference"], "sref")]
    errors = [("reference", calibration_error(bins["reference"]))]
    errors += [
        (v.name, calibration_error(bins[v.name])) for v in data.manifest.variants if v.name in bins
    ]
    said = ", ".join(f"{shorten(one_line(name), 60)} {decimal(e, 3)}" for name, e in errors)
    caption = (
        "How often answers of a score are right; on the dashed line scores are probabilities. "
        f"Grey: share of texts. Expected calibration error: {said}."
    )
    return [Figures((Figure(reliability_plot(drawn), caption),))]


def _vectors(data: EncoderData) -> list[Block]:
    found = [
        (series(i), v, cosine(data.reference, data.outputs[v.name]))
        for i, v in enumerate(data.manifest.variants)
        if v.name in data.outputs
    ]
    found = [(cls, v, c[np.isfinite(c)]) for cls, v, c in found]
    found = [(cls, v, c) for cls, v, c in found if len(c)]
    lo = histogram_floor([c for _, _, c in found])
    figures: list[Figure] = []
    for cls, v, c in found:
        low, mid = np.quantile(c, [0.01, 0.5]).tolist()
        caption = f"{v.name}: median {_cosine(mid)}, 1st percentile {_cosine(low)}."
        figures.append(Figure(histogram_plot(v.name, c, cls, lo), caption))
    if not figures:
        return []
    intro = "Cosine similarity between the vectors of the reference and of each variant."
    return [Paragraph(intro), Figures(tuple(figures))]


def _cosine(value: float) -> str:
    return decimal(value, 5) if np.isfinite(value) else DASH
