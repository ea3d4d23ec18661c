"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgelm.compiler.report import sections
from edgelm.compiler.report.blocks import Section
from edgelm.compiler.report.comparison import comparison
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.quality import quality
from edgelm.compiler.report.text import clean, decimal, plural
from edgelm.compiler.report.verdicts import verdicts
from edgelm.runtime.manifest import Task

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
    return environment.from_string(source).render(
        manifest=data.manifest,
        task=task_text(data.manifest.task),
        verdicts=verdicts(data),
        sections=page_sections(data),
        svg=Markup,
    )


def page_sections(data: ReportData) -> list[Section]:
    """In their order on the page; empty ones are left out."""
    found = [
        comparison(data),
        quality(data),
        sections.worst_examples(data),
        sections.training(data),
        sections.data_facts(data),
        sections.recipe(data),
        sections.provenance(data),
    ]
    return [s for s in found if s.blocks]


def task_text(task: Task) -> str:
    """`classifies a text into one of 26 labels`."""
    what = "a pair of texts" if task.pair else "a text"
    if task.kind == "feature-extraction":
        size = f" of {task.dimensions} dimensions" if task.dimensions else ""
        form = ", scaled to length one" if task.normalize else ""
        return f"turns {what} into a vector{size} ({task.pooling} pooling{form})"
    if task.problem == "multi_label":
        least = decimal(task.threshold, 2)
        return f"gives {what} any of {plural(len(task.labels), 'label')} (from {least} probability)"
    return f"gives {what} one of {plural(len(task.labels), 'label')}"


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
