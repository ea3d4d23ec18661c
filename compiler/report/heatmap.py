"""Confusion matrices and bars of label counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgelm.compiler.report.stats import Counts
from edgelm.compiler.report.svg import FONT, Drawing, Scale
from edgelm.compiler.report.text import count, fit, one_line, text_width

MAX_FULL = 30  # labels whose names still fit beside the matrix
MAX_COMPACT = 400
SLANT = math.radians(60)


def full_heatmap(labels: Sequence[str], matrix: Counts) -> str:
    """Rows: label in the data; columns: label answered. Shade: share of the row's texts."""
    C = len(labels)
    cell = 38.0 if C <= 8 else 30.0 if C <= 16 else 23.0
    names = [fit(label, 150, FONT) for label in labels]
    widest = max(text_width(n, FONT) for n in names)
    left, top = widest + 34, widest * math.sin(SLANT) + 40
    right = max(widest * math.cos(SLANT), 10.0) + 10
    d = Drawing(left + C * cell + right, top + C * cell + 8, "confusion matrix")
    d.text(left + C * cell / 2, 14, "answered", "name", anchor="middle")
    d.text(13, top + C * cell / 2, "in the data", "name", anchor="middle", turn=-90)
    totals = matrix.sum(axis=1)
    for i, name in enumerate(names):
        d.text(left - 6, top + (i + 0.5) * cell + 4, name, anchor="end", tip=one_line(labels[i]))
        d.text(
            left + (i + 0.5) * cell + 4, top - 6, name, turn=-60, tip=one_line(labels[i])
        )  # fmt: skip
        for j in range(C):
            _cell(d, labels, matrix, totals, i, j, (left + j * cell, top + i * cell, cell))
    return d.svg()


def _cell(
    d: Drawing,
    labels: Sequence[str],
    matrix: Counts,
    totals: Counts,
    i: int,
    j: int,
    at: tuple[float, float, float],
) -> None:
    x, y, size = at
    n = int(matrix[i, j])
    d.rect(x + 0.5, y + 0.5, size - 1, size - 1, "empty")
    if not n:
        return
    share = n / int(totals[i])
    shade = _shade(share)
    d.rect(
        x + 0.5, y + 0.5, size - 1, size - 1, _class(i, j),
        opacity=shade, tip=_tip(labels, i, j, n, share),
    )  # fmt: skip
    small = FONT if size >= 30 and n < 1000 else 10.0 if n < 1000 else 8.0
    on = "on" if shade > 0.7 else "off"
    cls = f"{on} f{small:.0f}"
    d.text(x + size / 2, y + size / 2 + small * 0.36, f"{n}", cls, anchor="middle")


def compact_heatmap(labels: Sequence[str], matrix: Counts) -> str:
    """As the full one, with names only under the pointer; empty cells are not drawn."""
    C = len(labels)
    cell = float(min(8, max(2, 560 // C)))
    left, top, size = 28.0, 26.0, C * cell
    d = Drawing(left + size + 6, top + size + 6, "confusion matrix")
    d.text(left + size / 2, 14, "answered", "name", anchor="middle")
    d.text(14, top + size / 2, "in the data", "name", anchor="middle", turn=-90)
    d.rect(left, top, size, size, "empty")
    totals = matrix.sum(axis=1)
    rows, columns = np.nonzero(matrix)
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        n = int(matrix[i, j])
        share = n / int(totals[i])
        d.rect(
            left + j * cell, top + i * cell, cell, cell, _class(i, j),
            opacity=max(0.35, _shade(share)), tip=_tip(labels, i, j, n, share),
        )  # fmt: skip
    return d.svg()


def label_bars(counts: Sequence[tuple[str, int]]) -> str:
    """A bar for each label, with its number of texts."""
    step, top = 22.0, 4.0
    names = [fit(label, 170, FONT) for label, _ in counts]
    left = max(text_width(n, FONT) for n in names) + 14
    x = Scale(0.0, float(max(1, *(n for _, n in counts))), left, left + 250)
    d = Drawing(left + 250 + 62, top + step * len(counts) + 4, "texts by label")
    for i, ((label, n), name) in enumerate(zip(counts, names, strict=True)):
        y = top + i * step
        d.text(left - 6, y + 14, name, anchor="end", tip=one_line(label))
        d.rect(left, y + 3, x(n) - left, step - 7, "s0", tip=f"{one_line(label)}: {count(n)}")
        d.text(x(n) + 6, y + 14, count(n), "tick")
    return d.svg()


def label_ranks(counts: Sequence[tuple[str, int]]) -> str:
    """The same for many labels: columns without names, commonest first."""
    width, height = 460.0, 200.0
    most = max(1, *(n for _, n in counts))
    x = Scale(0.0, float(len(counts)), 46, width - 8)
    y = Scale(0.0, float(most), height - 30, 24)
    d = Drawing(width, height, "texts by label, commonest first")
    d.text(4, 12, "texts", "name")
    for value in (0, most):
        d.line(x.start, y(value), x.end, y(value), "grid")
        d.text(x.start - 6, y(value) + 4, count(value), "tick", anchor="end")
    wide = x(1) - x(0)
    for i, (label, n) in enumerate(counts):
        tip = f"{one_line(label)}: {count(n)}"
        d.rect(x(i) + wide * 0.1, y(n), wide * 0.8, y.start - y(n), "s0", tip=tip)
    name = f"{len(counts)} labels, commonest first"
    d.text((x.start + x.end) / 2, height - 10, name, "name", anchor="middle")
    return d.svg()


def _class(i: int, j: int) -> str:
    return "hit" if i == j else "miss"


def _shade(share: float) -> float:
    return 0.12 + 0.88 * share


def _tip(labels: Sequence[str], i: int, j: int, n: int, share: float) -> str:
    return f"{one_line(labels[i])} answered as {one_line(labels[j])}: {count(n)} ({share:.1%})"
