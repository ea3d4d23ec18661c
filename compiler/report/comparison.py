"""The section that sets the variants side by side."""

from __future__ import annotations

from edgelm.compiler.limits import Limits
from edgelm.compiler.report.blocks import Block, Cell, Figure, Figures, Section, Table, row
from edgelm.compiler.report.data import EncoderData
from edgelm.compiler.report.plots import Latency, Point, latency_plot, size_plot
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    finite,
    megabytes,
    plural,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Measured, Parity, Variant
from edgelm.runtime.metrics import main_metric


def drop(data: EncoderData, variant: Variant) -> float | None:
    """How much of the main metric a variant loses against the reference."""
    name = main_metric(data.manifest.task)
    ours, theirs = variant.metrics.get(name), data.manifest.reference.get(name)
    return None if ours is None or theirs is None else theirs - ours


def comparison(data: EncoderData) -> Section:
    """One row a variant, the reference first."""
    manifest = data.manifest
    classifies = manifest.task.kind == "text-classification"
    metric = main_metric(manifest.task)
    metrics = [metric, *sorted(set(manifest.reference) - {metric})]
    if manifest.task.problem == "single_label":
        metrics = [m for m in metrics if m != "micro_f1"]  # it is the accuracy
    metrics = [m for m in metrics if m in manifest.reference]
    head = ["variant", "target", "precision", "size MB", *metrics]
    head += ["drop"] if metric in metrics else []
    head += ["agreement", "KL, nats"] if classifies else ["mean cosine", "least cosine"]
    head += ["largest difference", "p50 ms", "p95 ms", "texts/s", "memory MB"]
    reference = ["reference", "transformers", "fp32", DASH]
    reference += [decimal(manifest.reference[m]) for m in metrics]
    rows = [row(*reference, *[DASH] * (len(head) - len(reference)))]
    if manifest.original:  # the reference is a smaller model's
        original = ["original", "transformers", "fp32", DASH]
        original += [decimal(manifest.original.get(m)) for m in metrics]
        rows.insert(0, row(*original, *[DASH] * (len(head) - len(original))))
    for variant in manifest.variants:
        limits = data.limits.get(variant.name)
        cells: list[str | Cell] = [variant.name, variant.target, variant.precision]
        cells += [megabytes(variant_size(variant))]
        cells += [decimal(variant.metrics.get(m)) for m in metrics]
        if metric in metrics:
            cells.append(
                limited(decimal(drop(data, variant)), "≤", limits and decimal(limits.max_drop))
            )
        cells += _closeness(variant.parity, limits, classifies)
        cells += _measured(variant.measured)
        rows.append(row(*cells))
    caption = f"Compared over {plural(n_compared(data), 'text')} of the evaluation data"
    threads = {v.measured.threads for v in manifest.variants if v.measured and v.measured.threads}
    caption += (
        "; times and memory were measured on the machine that compiled"
        + (f", with {plural(threads.pop(), 'thread')}" if len(threads) == 1 else "")
        + ": p50 and p95 for one text of median length, texts/s for the evaluation texts in "
        "batches. MB is a million bytes."
    )
    if manifest.original:
        caption += " Original is the model before it was made smaller, reference what was made."
    if data.limits:
        caption += (
            " The small numbers are limits; a difference of a single text is let pass below fp32."
        )
    table = Table(tuple(head), tuple(rows), n_text=3, caption=caption)
    return Section("variants", "Variants", (table, *_overview(data)))


def variant_size(variant: Variant) -> int | None:
    """Bytes of its files; before there are any, what was measured."""
    if variant.files:
        return variant.size_bytes
    return variant.measured.size_bytes if variant.measured else None


def n_compared(data: EncoderData) -> int:
    """How many texts the variants were compared on."""
    return max((v.parity.n for v in data.manifest.variants if v.parity), default=data.data.n_eval)


def limited(text: str, sign: str, limit: str | None) -> Cell:
    """A figure with its limit below."""
    return Cell(text, f"{sign} {limit}" if limit and text != DASH else "")


def _closeness(parity: Parity | None, limits: Limits | None, classifies: bool) -> list[str | Cell]:
    if parity is None:
        return [DASH, DASH, DASH]
    least = limits and decimal(limits.min_agreement if classifies else limits.min_cosine)
    if classifies:
        first = [
            limited(decimal(parity.agreement), "≥", least),
            limited(small(parity.kl_divergence), "≤", limits and small(limits.max_kl)),
        ]
    else:
        first = [limited(decimal(parity.mean_cosine), "≥", least), decimal(parity.min_cosine)]
    return [*first, small(parity.max_abs_diff)]


def _measured(m: Measured | None) -> list[str]:
    if m is None:
        return [DASH] * 4
    times = [three_digits(m.latency_ms_p50), three_digits(m.latency_ms_p95)]
    return [*times, count(m.texts_per_s), megabytes(m.memory_bytes)]


def _overview(data: EncoderData) -> list[Block]:
    """Size against quality, and latency."""
    figures: list[Figure] = []
    manifest, metric = data.manifest, main_metric(data.manifest.task)
    reference = manifest.reference.get(metric)
    by_metric = reference is not None and finite(reference)
    points: list[Point] = []
    for v in manifest.variants:
        value = v.metrics.get(metric) if by_metric else v.parity and v.parity.mean_cosine
        size = variant_size(v)
        if size is not None and value is not None and finite(value):
            points.append(Point(v.name, size, value))
    if points and by_metric:
        svg = size_plot(points, metric, reference, least_pad=0.01)
        figures.append(Figure(svg, f"Size against {metric}: up and left is better."))
    elif points:
        svg = size_plot(points, "mean cosine", None, least_pad=0.0005)
        text = "Size against mean cosine similarity with the reference: up and left is better."
        figures.append(Figure(svg, text))
    times = [
        Latency(v.name, m.latency_ms_p50, m.latency_ms_p95 if finite(m.latency_ms_p95) else None)
        for v in manifest.variants
        if (m := v.measured) and m.latency_ms_p50 is not None and finite(m.latency_ms_p50)
    ]
    if times:
        text = "Latency of one text: the bar is p50, the whisker p95; shorter is better."
        figures.append(Figure(latency_plot(times), text))
    return [Figures(tuple(figures))] if figures else []
