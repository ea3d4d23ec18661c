"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgelm.compiler.report import sections
from edgelm.compiler.report.blocks import Section
from edgelm.compiler.report.data import ReportData, Search
from edgelm.compiler.report.kinds import Kind, kind_of
from edgelm.compiler.report.search import search_section
from edgelm.compiler.report.text import clean
from edgelm.compiler.report.verdicts import verdicts

TEMPLATE = "report.html.j2"


def render_report(data: ReportData) -> str:
    """The page of a bundle."""
    kind = kind_of(data)
    return _page(
        title=data.manifest.name,
        version=data.manifest.version,
        lead=f"It {kind.does()}. {kind.length()}",
        verdicts=verdicts(data, kind),
        sections=page_sections(data, kind),
    )


def render_search(search: Search, model: str, recipe_yaml: str | None) -> str:
    """The page of a search, with the recipe of the best point where there is one."""
    best = next((p.name for p in search.points if p.is_best), None)
    return _page(
        title=f"Search: {model}",
        version="",
        lead="No point meets the budget." if best is None else f"The best point is {best}.",
        verdicts=[],
        sections=[
            search_section(search),
            *([] if recipe_yaml is None else [sections.recipe(recipe_yaml)]),
        ],
    )


def _page(**values: Any) -> str:
    """All texts are escaped by the template; drawings escape their own."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = files("edgelm.compiler.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(svg=Markup, **values)


def page_sections(data: ReportData, kind: Kind) -> list[Section]:
    """In their order on the page; empty ones are left out."""
    found = [*kind.sections(), sections.types(data)]
    found += [] if data.search is None else [search_section(data.search)]
    found.append(sections.recipe(data.recipe_yaml))
    found.append(sections.provenance(data))
    return [s for s in found if s.blocks]


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
