"""Numbers and users' texts, made fit to be shown. What is missing or not finite is a dash."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

DASH = "–"
MINUS = "−"

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
# Characters that XML and UTF-8 refuse, or that draw nothing: controls, lone surrogates.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """The text with characters that no page can hold made visible as U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def one_line(text: str) -> str:
    """White space folded, so that the text stays in its line."""
    return " ".join(clean(text).split())


def shorten(text: str, n: int) -> str:
    """At most n characters, cut at the end."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"


def fit(text: str, width: float, size: float) -> str:
    """One line of the text, cut to `width` in a font of `size`."""
    line = one_line(text)
    if text_width(line, size) <= width:
        return line
    while line and text_width(line + "…", size) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def text_width(text: str, size: float) -> float:
    """About how wide a sans-serif font of `size` sets the text."""
    units = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.57 for c in text)
    return units * size


def finite(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def decimal(value: float | None, digits: int = 4) -> str:
    """`0.9512`; 0 never carries a sign."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def small(value: float | None) -> str:
    """A number whose order of magnitude matters: `0.0123`, `4.5e-06`."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return decimal(value)
    return f"{value:.1e}"


def megabytes(n_bytes: int | float | None) -> str:
    """Millions of bytes, no unit."""
    if n_bytes is None or not math.isfinite(n_bytes):
        return DASH
    return f"{n_bytes / 1e6:,.{2 if n_bytes < 1e7 else 1}f}"


def three_digits(value: float | None) -> str:
    """`0.123`, `1.23`, `12.3`, `1,234`."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{digits}f}"


def count(n: int | float | None) -> str:
    """`12,345`."""
    return DASH if n is None or not math.isfinite(n) else f"{round(n):,}"


def plural(n: int, noun: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def file_name(path: str) -> str:
    """The last part of a path: where a user's files lie is nobody's business."""
    return re.split(r"[\\/]", path)[-1]


def markdown(text: str) -> str:
    """The text as it is, with nothing that Markdown or HTML would read in it."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the rest are numbers. Cells are Markdown."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
