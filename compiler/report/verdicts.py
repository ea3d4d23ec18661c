"""In a sentence a variant: whether it is within its limits, and the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.kinds import Kind
from edgelm.runtime.manifest import Variant


@dataclass(frozen=True)
class Verdict:
    """What the page's head says of one variant."""

    name: str
    tone: str  # good, bad
    word: str
    text: str
    failures: tuple[str, ...]


def verdicts(data: ReportData, kind: Kind) -> list[Verdict]:
    """In the order of the manifest."""
    return [_verdict(data, kind, v) for v in data.manifest.variants]


def _verdict(data: ReportData, kind: Kind, variant: Variant) -> Verdict:
    failures = data.failures.get(variant.name, ())
    if variant.parity is None:
        return Verdict(variant.name, "bad", "not compared", "it was not run", failures)
    tone, word = ("bad", "over its limits") if failures else ("good", "verified")
    return Verdict(variant.name, tone, word, ", ".join(kind.facts(variant)), failures)
