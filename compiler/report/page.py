"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgelm.compiler.report import sections
from edgelm.compiler.report.blocks import Section
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.kinds import Kind, kind_of
from edgelm.compiler.report.text import clean
from edgelm.compiler.report.verdicts import verdicts

TEMPLATE = "report.html.j2"


def render_report(data: ReportData) -> str:
    """The whole page. All texts are escaped by the template; drawings escape their own."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("edgelm.compiler.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    kind = kind_of(data)
    return environment.from_string(source).render(
        manifest=data.manifest,
        lead=f"It {kind.does()}. {kind.length()}",
        verdicts=verdicts(data, kind),
        sections=page_sections(data, kind),
        svg=Markup,
    )


def page_sections(data: ReportData, kind: Kind) -> list[Section]:
    """In their order on the page; empty ones are left out."""
    found = [*kind.sections(), sections.types(data), sections.recipe(data)]
    found.append(sections.provenance(data))
    return [s for s in found if s.blocks]


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
