"""What page and card are built of; report.html.j2 knows how each block is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    text: str
    note: str = ""  # small, below it
    tone: str = ""  # good, bad


@dataclass(frozen=True)
class Table:
    """Rows of cells. The first `n_text` columns are words, the rest are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_text: int = 1
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption. A wide one keeps its size and scrolls."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Figures:
    """Drawings side by side where there is room."""

    figures: tuple[Figure, ...]
    kind: str = "figures"


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[str, ...]
    kind: str = "items"


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    facts: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class Pre:
    """Text as it stands."""

    text: str
    kind: str = "pre"


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False
    kind: str = "details"


Block = Table | Figures | Paragraph | Items | Facts | Pre | Details


@dataclass(frozen=True)
class CardParts:
    """What card.md says of one kind of task, in Markdown."""

    answers: str  # what the bundle answers
    python: str  # how it is asked, after `model = edgelm.load(…)`
    shell: str  # what stands behind `edgelm predict BUNDLE`
    variants: str
    data: str
    notes: tuple[str, ...]  # what was noticed in the data, plain
    limits: list[str]  # items
    verified: list[str]  # items


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


def row(*cells: str | Cell) -> tuple[Cell, ...]:
    """A table row of plain texts and cells."""
    return tuple(Cell(c) if isinstance(c, str) else c for c in cells)
