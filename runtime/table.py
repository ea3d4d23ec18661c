"""Tables for a terminal, and what a bundle's variants look like in one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgelm.runtime.manifest import Manifest, Measured, TaskKind, Variant


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is left-aligned, the others right."""
    widths = [max(width(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell + " " * (w - width(cell)) if i == 0 else " " * (w - width(cell)) + cell
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])


def width(text: str) -> int:
    """Terminal columns of a text; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """A figure with so many decimals, or a dash."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def variants_table(manifest: Manifest, measured: dict[str, Measured] | None = None) -> str:
    """The comparison table: the reference first, then each variant."""
    columns = _COLUMNS[manifest.task.kind](manifest)
    head = ["variant", "MB", *(c.name for c in columns)]
    rows = [["reference (fp32)", "-", *(c.reference for c in columns)]]
    for variant in manifest.variants:
        figures = (measured or {}).get(variant.name, variant.measured)
        cells = [c.cell(variant, figures) for c in columns]
        rows.append([variant.name, number(variant.size_bytes, 2, 1e-6), *cells])
    return format_table(head, rows)


@dataclass(frozen=True)
class _Column:
    name: str
    cell: Callable[[Variant, Measured | None], str]
    reference: str = "-"


def _parity(name: str, key: str, digits: int | None = 4) -> _Column:
    """A figure of closeness; without digits, its order of magnitude."""

    def cell(variant: Variant, figures: Measured | None) -> str:
        value: float | None = variant.parity and getattr(variant.parity, key)
        if digits is not None or value is None:
            return number(value, digits or 0)
        return f"{value:.1e}"

    return _Column(name, cell)


def _measured(name: str, key: str, digits: int, scale: float = 1.0) -> _Column:
    def cell(variant: Variant, figures: Measured | None) -> str:
        return number(figures and getattr(figures, key), digits, scale)

    return _Column(name, cell)


def _text_columns(manifest: Manifest, closeness: _Column) -> list[_Column]:
    metric = next(iter(_metric_names(manifest)), None)

    def score(variant: Variant, figures: Measured | None) -> str:
        return number(variant.metrics.get(metric or ""), 4)

    return [
        _Column(metric or "-", score, number(manifest.reference.get(metric or ""), 4)),
        closeness,
        _parity("max diff", "max_abs_diff", None),
        _measured("p50 ms", "latency_ms_p50", 2),
        _measured("p95 ms", "latency_ms_p95", 2),
        _measured("texts/s", "texts_per_s", 0),
        _measured("memory MB", "memory_bytes", 0, 1e-6),
    ]


def _classification_columns(manifest: Manifest) -> list[_Column]:
    return _text_columns(manifest, _parity("agreement", "agreement"))


def _embedding_columns(manifest: Manifest) -> list[_Column]:
    return _text_columns(manifest, _parity("cosine", "mean_cosine"))


def _generation_columns(manifest: Manifest) -> list[_Column]:
    def ratio(variant: Variant, figures: Measured | None) -> str:
        return number(variant.metrics.get("perplexity"), 3)

    return [
        _Column("perplexity", ratio, number(manifest.reference.get("perplexity"), 3)),
        _parity("KL", "kl_divergence"),
        _parity("same top", "agreement"),
        _parity("gain kept", "gain_kept", 3),
        _measured("first ms", "first_token_ms", 1),
        _measured("prompt tok/s", "prompt_tokens_per_s", 0),
        _measured("answer tok/s", "answer_tokens_per_s", 1),
        _measured("memory MB", "memory_bytes", 0, 1e-6),
    ]


_COLUMNS: dict[TaskKind, Callable[[Manifest], list[_Column]]] = {
    "text-classification": _classification_columns,
    "feature-extraction": _embedding_columns,
    "text-generation": _generation_columns,
}


def _metric_names(manifest: Manifest) -> list[str]:
    order = ["accuracy", "micro_f1", "spearman"]
    if manifest.task.problem == "multi_label":
        order = ["micro_f1", "accuracy"]
    return [name for name in order if name in manifest.reference]
