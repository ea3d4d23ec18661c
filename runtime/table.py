"""Tables for a terminal, and what a bundle's variants look like in one."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from edgelm.runtime.manifest import Manifest, Measured, Variant


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
    metric = next(iter(_metric_names(manifest)), None)
    classifies = manifest.task.kind == "text-classification"
    closeness = "agreement" if classifies else "cosine"
    head = ["variant", "MB", metric or "-", closeness, "max diff", "p50 ms", "p95 ms", "texts/s"]
    head.append("memory MB")
    reference = ["reference (fp32)", "-", number(manifest.reference.get(metric or ""), 4)]
    rows = [[*reference, *["-"] * 6]]
    for variant in manifest.variants:
        figures = (measured or {}).get(variant.name, variant.measured)
        rows.append(_row(variant, figures, metric))
    return format_table(head, rows)


def _metric_names(manifest: Manifest) -> list[str]:
    order = ["accuracy", "micro_f1", "spearman"]
    if manifest.task.problem == "multi_label":
        order = ["micro_f1", "accuracy"]
    return [name for name in order if name in manifest.reference]


def _row(variant: Variant, figures: Measured | None, metric: str | None) -> list[str]:
    parity = variant.parity
    close = None if parity is None else (parity.agreement or parity.mean_cosine)
    return [
        variant.name,
        number(variant.size_bytes, 2, 1e-6),
        number(variant.metrics.get(metric or ""), 4),
        number(close, 4),
        "-" if parity is None else f"{parity.max_abs_diff:.1e}",
        number(figures and figures.latency_ms_p50, 2),
        number(figures and figures.latency_ms_p95, 2),
        number(figures and figures.texts_per_s, 0),
        number(figures and figures.memory_bytes, 0, 1e-6),
    ]
