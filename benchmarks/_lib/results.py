"""Tables in Markdown, goals, and the sections of RESULTS.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _lib.rounds import Spread

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"


@dataclass(frozen=True)
class Goal:
    """A promise and what was found."""

    what: str
    limit: str
    found: str
    met: bool


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(max(w, 3) for w in widths)
    ]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def goals_table(goals: Sequence[Goal]) -> str:
    """Goals beside what was found."""
    rows = [[g.what, g.limit, g.found, "yes" if g.met else "NO"] for g in goals]
    return table(["goal", "limit", "found", "met"], rows)


def report(
    said: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]], goals: Sequence[Goal]
) -> str:
    """The text of a section: lines on what was measured, the figures, the goals."""
    return "\n".join([*said, "", table(head, rows), "", goals_table(goals)])


def at_least(what: str, limit: float, found: Spread, unit: str, digits: int = 2) -> Goal:
    """A goal that the median meets."""
    shown = f"{found.show(digits)} {unit}"
    return Goal(what, f">= {limit:g} {unit}", shown, found.median >= limit)


def at_most(what: str, limit: float, found: Spread, unit: str, digits: int = 2) -> Goal:
    """A goal that the median meets."""
    shown = f"{found.show(digits)} {unit}"
    return Goal(what, f"<= {limit:g} {unit}", shown, found.median <= limit)


def write_section(name: str, body: str, path: Path = RESULTS) -> None:
    """Replace what stands between the markers of `name`, or add them at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{body.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    scratch = path.with_suffix(".md.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
