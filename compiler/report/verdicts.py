"""In a sentence a variant: whether it is within its limits, and the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.compiler.report.comparison import variant_size
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.text import DASH, decimal, finite, megabytes, plural, three_digits
from edgelm.runtime.manifest import Variant
from edgelm.runtime.metrics import main_metric


@dataclass(frozen=True)
class Verdict:
    """What the page's head says of one variant."""

    name: str
    tone: str  # good, bad
    word: str
    text: str
    failures: tuple[str, ...]


def verdicts(data: ReportData) -> list[Verdict]:
    """In the order of the manifest."""
    return [_verdict(data, v) for v in data.manifest.variants]


def _verdict(data: ReportData, variant: Variant) -> Verdict:
    failures = data.failures.get(variant.name, ())
    if variant.parity is None:
        return Verdict(variant.name, "bad", "not compared", "it was not run", failures)
    tone, word = ("bad", "over its limits") if failures else ("good", "verified")
    return Verdict(variant.name, tone, word, ", ".join(_facts(data, variant)), failures)


def _facts(data: ReportData, variant: Variant) -> list[str]:
    parity, measured, metric = variant.parity, variant.measured, main_metric(data.manifest.task)
    facts: list[str] = []
    if (size := variant_size(variant)) is not None:
        facts.append(f"{megabytes(size)} MB")
    if measured and finite(measured.latency_ms_p50):
        facts.append(f"{three_digits(measured.latency_ms_p50)} ms a text")
    if metric in variant.metrics:
        text = f"{metric} {decimal(variant.metrics[metric])}"
        if metric in data.manifest.reference:
            text += f" (reference {decimal(data.manifest.reference[metric])})"
        facts.append(text)
    if parity and parity.agreement is not None:
        differ = round((1 - parity.agreement) * parity.n) if finite(parity.agreement) else DASH
        facts.append(f"{differ} of {plural(parity.n, 'text')} answered unlike the reference")
    if parity and parity.mean_cosine is not None:
        facts.append(f"mean cosine {decimal(parity.mean_cosine)}")
    return facts
