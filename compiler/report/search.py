"""What a search within a budget has found: every point, and those that no other beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgelm.compiler.report.blocks import Block, Figure, Figures, Paragraph, Section, Table, row
from edgelm.compiler.report.data import Search, SearchPoint
from edgelm.compiler.report.plots import HEIGHT, WIDTH, label_box, padded
from edgelm.compiler.report.svg import FONT, Box, Drawing, Scale, axes, ticks
from edgelm.compiler.report.text import (
    decimal,
    fit,
    megabytes,
    one_line,
    plural,
    text_width,
    three_digits,
)

N_NAMED = 8  # points of the front whose names fit into a plot


def search_section(found: Search) -> Section:
    """Plots of the points with figures, and a table of all."""
    tried = sum(p.quality is not None for p in found.points)
    said = f"{plural(len(found.points), 'point')}, {tried} of them made, in {found.seconds:,.0f} s."
    blocks: list[Block] = [Paragraph(said)]
    figures = [
        _figure(found, "size, MB", lambda p: _scaled(p.size_bytes), _scaled(found.most_bytes))
    ]
    if len(found.machines) > 1:
        machines = "; ".join(found.machines)
        said = f"Latency and memory, of several machines, are not compared: {machines}."
        blocks.append(Paragraph(said))
    else:
        bound = found.most_latency_ms
        figures.append(_figure(found, "latency, ms", lambda p: p.latency_ms, bound))
    shown = tuple(figure for figure in figures if figure is not None)
    blocks += [Figures(shown)] if shown else []
    head = ("point", "outcome", "MB", found.quality, f"drop, {found.drop_unit}", "ms", "memory MB")
    rows = tuple(
        row(
            f"{'* ' if p.is_front else ''}{p.name}", p.outcome, megabytes(p.size_bytes),
            decimal(p.quality), decimal(p.drop, 2), three_digits(p.latency_ms),
            megabytes(p.memory_bytes),
        )
        for p in found.points
    )  # fmt: skip
    caption = "* no other point is at least as good in everything."
    blocks.append(Table(head, rows, n_text=2, caption=caption))
    return Section("search", "Search", tuple(blocks))


def _figure(
    found: Search, x_name: str, x_of: Callable[[SearchPoint], float | None], bound: float | None
) -> Figure | None:
    spots = [
        (p, x, p.quality)
        for p in found.points
        if (x := x_of(p)) is not None and p.quality is not None
    ]
    if not spots:
        return None
    caption = f"{found.quality} against {x_name.partition(',')[0]}"
    parts = ["filled: no other is at least as good in everything", "ringed: the best"]
    parts += ["dotted: the bound"] if bound is not None else []
    drawn = _scatter(spots, x_name, found.quality, found.reference, bound)
    return Figure(drawn, f"{caption}; {', '.join(parts)}.")


def _scatter(
    spots: Sequence[tuple[SearchPoint, float, float]],
    x_name: str,
    y_name: str,
    reference: float | None,
    bound: float | None,
) -> str:
    d = Drawing(WIDTH, HEIGHT, f"{y_name} against {x_name}")
    values = [y for _, _, y in spots] + ([] if reference is None else [reference])
    widest = max([x for _, x, _ in spots] + ([] if bound is None else [bound]))
    x = Scale(0.0, widest * 1.12 or 1.0, 58, WIDTH - 14)
    y = Scale(*padded(values, 1e-4), HEIGHT - 46, 34)
    axes(d, x, y, x_name, y_name, x_ticks=ticks(x.lo, x.hi), y_ticks=ticks(y.lo, y.hi))
    if reference is not None:
        d.line(x.start, y(reference), x.end, y(reference), "ref")
    if bound is not None:
        d.line(x(bound), y.start, x(bound), y.end, "bound")
    places = [(p, x(a), y(b)) for p, a, b in spots]
    taken: list[Box] = [(px - 6, py - 6, px + 6, py + 6) for _, px, py in places]
    for p, px, py in places:
        tip = f"{one_line(p.name)}: {p.outcome}"
        d.circle(px, py, 4, "s0" if p.is_front else "hollow", tip)
        if p.is_best:
            d.circle(px, py, 8, "ring", tip)
    named = sorted(
        (q for q in places if q[0].is_front or q[0].is_best), key=lambda q: -q[0].is_best
    )
    for p, px, py in named[:N_NAMED]:
        name = fit(p.name, 210, FONT)
        frame = (x.start, y.end - 6, x.end, y.start)
        box = label_box(px, py, text_width(name, FONT), frame, taken)
        taken.append(box)
        d.text(box[0], box[3] - 3, name)
    return d.svg()


def _scaled(n_bytes: float | None) -> float | None:
    return None if n_bytes is None else n_bytes / 1e6
