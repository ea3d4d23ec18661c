"""The plots: size against quality, latency, training, calibration, cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.report.stats import Bin
from edgelm.compiler.report.svg import (
    FONT,
    Box,
    Drawing,
    Scale,
    axes,
    overlap,
    place,
    series,
    ticks,
)
from edgelm.compiler.report.text import (
    count,
    decimal,
    finite,
    fit,
    megabytes,
    one_line,
    text_width,
    three_digits,
)

WIDTH, HEIGHT = 460.0, 300.0


@dataclass(frozen=True)
class Point:
    """A variant in the plot of size against quality."""

    name: str
    size_bytes: int
    value: float


@dataclass(frozen=True)
class Latency:
    """A variant's times for one text."""

    name: str
    p50: float
    p95: float | None


@dataclass(frozen=True)
class Curve:
    """A named line; its class sets the colour."""

    name: str
    points: tuple[tuple[float, float], ...]
    cls: str


def size_plot(
    points: Sequence[Point],
    value_name: str,
    reference: float | None,
    *,
    least_pad: float,
    floor: float = -math.inf,
) -> str:
    """Labelled points, and the reference as a line where there is one."""
    d = Drawing(WIDTH, HEIGHT, f"{value_name} against size in MB")
    values = [p.value for p in points] + ([reference] if reference is not None else [])
    lo, hi = padded(values, least_pad)
    lo = max(lo, floor)
    x = Scale(0.0, max(p.size_bytes for p in points) / 1e6 * 1.12 or 1.0, 58, WIDTH - 14)
    y = Scale(lo, hi, HEIGHT - 46, 34)
    axes(
        d, x, y, "size, MB", value_name,
        x_ticks=ticks(x.lo, x.hi), y_ticks=ticks(y.lo, y.hi),
    )  # fmt: skip
    taken: list[Box] = []
    spots = [(x(p.size_bytes / 1e6), y(p.value)) for p in points]
    taken += [(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
    if reference is not None:
        text = f"reference {decimal(reference)}"
        width = text_width(text, FONT)
        top = y(reference)
        d.line(x.start, top, x.end, top, "ref")
        # beside the line, and where the fewest points are
        sides = [
            (left, line - FONT, left + width, line)
            for line in (top - 5, top + FONT + 3)
            for left in (x.end - width, x.start + 4, (x.start + x.end - width) / 2)
            if line - FONT > y.end - 10 and line < y.start
        ]
        box = place(sides, lambda b: sum(overlap(b, t) for t in taken))
        d.text(box[0], box[3] - 2, text, "reftext")
        taken += [box, (x.start, top - 1, x.end, top + 1)]
    for i, (p, (px, py)) in enumerate(zip(points, spots, strict=True)):
        tip = f"{one_line(p.name)}: {megabytes(p.size_bytes)} MB, {decimal(p.value)}"
        d.circle(px, py, 5, series(i), tip)
    for p, (px, py) in zip(points, spots, strict=True):
        name = fit(p.name, 150, FONT)
        box = label_box(px, py, text_width(name, FONT), (x.start, y.end - 6, x.end, y.start), taken)
        taken.append(box)
        d.text(box[0], box[3] - 3, name)
    return d.svg()


def label_box(px: float, py: float, width: float, frame: Box, taken: Sequence[Box]) -> Box:
    """Beside, above or below a point, where it covers least."""
    half = FONT / 2 + 1
    corners = [(px + 9, py - half), (px - 9 - width, py - half)]
    for away in (9, 23, 37):
        for left in (px - width / 2, px + 4, px - 4 - width):
            corners += [(left, py - away - 2 * half), (left, py + away)]
    boxes = [(left, top, left + width, top + 2 * half) for left, top in corners]

    def cost(box: Box) -> float:
        area = (box[2] - box[0]) * (box[3] - box[1])
        return sum(overlap(box, t) for t in taken) + 2 * (area - overlap(box, frame))

    return place(boxes, cost)


def padded(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range with air around the values; figures of merit do not exceed 1."""
    lo, hi = min(values), max(values)
    pad = max((hi - lo) * 0.25, least)
    top = hi + pad
    return lo - pad, (min(top, 1.0 + pad * 0.1) if hi <= 1.0 else top)


def latency_plot(rows: Sequence[Latency]) -> str:
    """A bar to p50 and a whisker to p95 for each variant, its name above the bar."""
    step, top = 42.0, 8.0
    height = top + step * len(rows) + 46
    d = Drawing(WIDTH, height, "latency of one text in ms")
    longest = max(max(r.p50, r.p95 or 0.0) for r in rows)
    x = Scale(0.0, longest * 1.03 or 1.0, 14, WIDTH - 14)
    bottom = top + step * len(rows) + 4
    for value in ticks(x.lo, x.hi):
        d.line(x(value), top, x(value), bottom, "grid")
    for i, r in enumerate(rows):
        y = top + i * step + 18
        tail = "" if r.p95 is None else f" · p95 {three_digits(r.p95)}"
        figures = f"p50 {three_digits(r.p50)}{tail} ms"
        d.text(x.start, y - 5, fit(r.name, 220, FONT))
        d.text(x.end, y - 5, figures, "tick", anchor="end")
        d.rect(x.start, y, x(r.p50) - x.start, 16, series(i), tip=f"{one_line(r.name)}: {figures}")
        if r.p95 is not None:
            d.line(x(r.p50), y + 8, x(r.p95), y + 8, "whisker")
            d.line(x(r.p95), y + 3, x(r.p95), y + 13, "whisker")
    y = Scale(0.0, 1.0, bottom, top)
    axes(d, x, y, "latency of one text, ms", "", x_ticks=ticks(x.lo, x.hi), y_ticks=[])
    return d.svg()


def curves_plot(curves: Sequence[Curve], y_name: str) -> str:
    """Values by epoch, with points, so that a single epoch shows too."""
    d = Drawing(WIDTH, HEIGHT, f"{y_name} by epoch")
    xs = [p[0] for c in curves for p in c.points]
    ys = [p[1] for c in curves for p in c.points]
    pad = (max(ys) - min(ys)) * 0.08 or 0.05
    low = min(ys) - pad if min(ys) < 0 else max(0.0, min(ys) - pad)
    x = Scale(min(0.0, min(xs)), max(1.0, max(xs)), 58, WIDTH - 16)
    y = Scale(low, max(ys) + pad, HEIGHT - 46, 34)
    axes(
        d, x, y, "epoch", y_name,
        x_ticks=ticks(x.lo, x.hi, 8, whole=True), y_ticks=ticks(y.lo, y.hi),
    )  # fmt: skip
    for c in curves:
        spots = [(x(a), y(b)) for a, b in c.points]
        d.path(spots, f"curve {c.cls}")
        for (px, py), (epoch, value) in zip(spots, c.points, strict=True):
            tip = f"{c.name}, epoch {decimal(epoch, 0)}: {decimal(value)}"
            d.circle(px, py, 3, c.cls, tip)
    _legend(d, [(c.name, c.cls) for c in curves], WIDTH - 16, 16)
    return d.svg()


def reliability_plot(named: Sequence[tuple[str, Sequence[Bin], str]]) -> str:
    """Accuracy by score; the diagonal is a model whose scores are right. Bars: share of texts."""
    d = Drawing(WIDTH, HEIGHT + 40, "accuracy by score")
    x = Scale(0.0, 1.0, 58, WIDTH - 16)
    y = Scale(0.0, 1.0, HEIGHT - 6, 34)
    marks = [i / 5 for i in range(6)]
    axes(d, x, y, "score of the answer", "accuracy", x_ticks=marks, y_ticks=marks)
    shares = named[0][1]
    total = sum(b.n for b in shares) or 1
    wide = (x.end - x.start) / 10
    for b in shares:
        left = x.start + min(9, int(b.confidence * 10)) * wide
        tall = b.n / total * (y.start - y.end)
        d.rect(left + 2, y.start - tall, wide - 4, tall, "share", tip=f"{count(b.n)} texts")
    d.line(x(0), y(0), x(1), y(1), "ref")
    for name, bins, cls in reversed(named):  # the first on top
        spots = [(x(b.confidence), y(b.accuracy)) for b in bins]
        d.path(spots, f"curve {cls}")
        for (px, py), b in zip(spots, bins, strict=True):
            tip = (
                f"{one_line(name)}: mean score {decimal(b.confidence, 3)}, accuracy "
                f"{decimal(b.accuracy, 3)}, {count(b.n)} texts"
            )
            d.circle(px, py, 3.5, cls, tip)
    _legend(d, [(name, cls) for name, _, cls in named], WIDTH - 16, 16)
    return d.svg()


def histogram_plot(name: str, values: NDArray[np.floating], cls: str, lo: float) -> str:
    """How often a cosine similarity occurs, from `lo` to 1."""
    d = Drawing(WIDTH, 240.0, f"cosine similarity of {one_line(name)} and the reference")
    wide = np.clip(values.astype(np.float64), lo, 1.0)  # near 1 float32 is too coarse for 30 bins
    counts, edges = np.histogram(wide, bins=30, range=(lo, 1.0))
    x = Scale(lo, 1.0, 58, WIDTH - 24)
    y = Scale(0.0, float(max(1, counts.max())) * 1.05, 194, 34)
    axes(
        d, x, y, "cosine similarity with the reference", "texts",
        x_ticks=ticks(lo, 1.0, 4), y_ticks=ticks(0.0, y.hi, 4, whole=True),
    )  # fmt: skip
    for n, left, right in zip(counts.tolist(), edges, edges[1:], strict=False):
        if n:
            d.rect(
                x(left) + 0.5, y(n), x(right) - x(left) - 1, y.start - y(n), cls,
                tip=f"{count(n)} texts",
            )  # fmt: skip
    _legend(d, [(name, cls)], WIDTH - 16, 16)
    return d.svg()


def histogram_floor(all_values: Sequence[NDArray[np.floating]]) -> float:
    """A round value below the smallest cosine of all variants, for one axis for all of them."""
    smallest = min((float(v.min()) for v in all_values if len(v)), default=0.9)
    gap = max(1.0 - smallest, 1e-6)
    step = 10.0 ** math.floor(math.log10(gap))
    return 1.0 - math.ceil(gap / step * 0.999) * step


def _legend(d: Drawing, names: Sequence[tuple[str, str]], right: float, y: float) -> None:
    """Names with their colours, in one line that ends at `right`."""
    each = 260 / max(1, len(names))
    for name, cls in reversed(names):
        text = fit(name, each, FONT)
        right -= text_width(text, FONT)
        d.text(right, y, text)
        right -= 15
        d.rect(right, y - 9, 10, 10, cls)
        right -= 12


def known(points: Sequence[tuple[float | None, float | None]]) -> tuple[tuple[float, float], ...]:
    """The points of which both values are there and finite."""
    return tuple((float(a or 0), float(b or 0)) for a, b in points if finite(a) and finite(b))
