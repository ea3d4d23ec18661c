"""Drawing: SVG as strings, scales, ticks and axes. Colours and fonts are the style sheet's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from edgelm.compiler.report.text import MINUS, clean

FONT = 12.0  # size of the text in a drawing, px
N_COLORS = 6  # series classes s0 … s5 of the style sheet

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    lo: float
    hi: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.hi - self.lo or 1.0
        return self.start + (value - self.lo) / span * (self.end - self.start)


@dataclass
class Drawing:
    """One picture; the methods add to it, in the order of painting."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list[str])

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
        """A straight line."""
        self._add("line", cls, x1=x1, y1=y1, x2=x2, y2=y2)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        cls: str,
        *,
        opacity: float | None = None,
        tip: str = "",
    ) -> None:
        """A filled box; `tip` shows under the pointer."""
        size = {"width": max(0.0, width), "height": max(0.0, height)}
        self._add("rect", cls, tip, x=x, y=y, **size, fill_opacity=opacity)

    def circle(self, x: float, y: float, r: float, cls: str, tip: str = "") -> None:
        """A point."""
        self._add("circle", cls, tip, cx=x, cy=y, r=r)

    def path(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """A line through points."""
        steps = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self.parts.append(f'<polyline class="{cls}" points="{steps}"/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        cls: str = "t",
        *,
        anchor: Anchor = "start",
        turn: float | None = None,
        tip: str = "",
    ) -> None:
        """One line of text, turned by `turn` degrees around its anchor."""
        where = None if turn is None else f"rotate({_number(turn)} {_number(x)} {_number(y)})"
        inside = (_tip(tip)) + escape(clean(text))
        attributes = _attributes(x=x, y=y, text_anchor=anchor, transform=where)
        self.parts.append(f'<text class="{cls}"{attributes}>{inside}</text>')

    def svg(self) -> str:
        """The finished element."""
        w, h = _number(self.width), _number(self.height)
        return (
            f'<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
            f"aria-label={quoteattr(clean(self.title))}>" + "".join(self.parts) + "</svg>"
        )

    def _add(self, tag: str, cls: str, tip: str = "", **attributes: float | None) -> None:
        head = f'<{tag} class="{cls}"{_attributes(**attributes)}'
        self.parts.append(f"{head}>{_tip(tip)}</{tag}>" if tip else f"{head}/>")


def series(index: int) -> str:
    """The class of the series with that number."""
    return f"s{index % N_COLORS}"


def ticks(lo: float, hi: float, n: int = 5, *, whole: bool = False) -> list[float]:
    """Round values from lo to hi, about n of them; whole numbers only where asked."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / n
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * size >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(lo / step - 1e-6), math.floor(hi / step + 1e-6)
    return [i * step for i in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """All with as many decimals as the finest of them needs."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    digits = next(
        (d for d in range(10) if all(abs(round(v, d) - v) < step * 1e-3 for v in values)), 10
    )
    return [f"{v + 0.0:,.{digits}f}".replace("-", MINUS) for v in values]


def axes(
    drawing: Drawing,
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    *,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
) -> None:
    """Grid, tick marks' numbers and titles. The y title stands level above the axis."""
    for value, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        drawing.line(x.start, y(value), x.end, y(value), "grid")
        drawing.text(x.start - 6, y(value) + 4, text, "tick", anchor="end")
    for value, text in zip(x_ticks, tick_texts(x_ticks), strict=True):
        drawing.line(x(value), y.start, x(value), y.start + 4, "axis")
        drawing.text(x(value), y.start + 17, text, "tick", anchor="middle")
    drawing.line(x.start, y.start, x.end, y.start, "axis")
    drawing.text((x.start + x.end) / 2, y.start + 35, x_title, "name", anchor="middle")
    drawing.text(4, y.end - 12, y_title, "name")


Box = tuple[float, float, float, float]  # left, top, right, bottom


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def place(candidates: Sequence[Box], cost: Callable[[Box], float]) -> Box:
    """The first of the cheapest boxes."""
    return min(candidates, key=cost)


def _tip(text: str) -> str:
    return f"<title>{escape(clean(text))}</title>" if text else ""


def _attributes(**attributes: float | str | None) -> str:
    parts: list[str] = []
    for name, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else _number(value)
            parts.append(f" {name.replace('_', '-')}={quoteattr(text)}")
    return "".join(parts)


def _number(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
