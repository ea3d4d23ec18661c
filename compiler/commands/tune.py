"""edgelm tune"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgelm.compiler.commands.compile import recipe_from, recipe_options
from edgelm.runtime.progress import Progress


@click.command(name="tune")
@click.argument("model_or_recipe")
@recipe_options
@click.option("--no-train", is_flag=True, help="Search over the model as it is.")
@click.option("--dry-run", is_flag=True, help="Print the plan, and end.")
@click.option(
    "--best",
    type=click.Path(path_type=Path, dir_okay=False),
    default="best.yaml",
    show_default=True,
    help="Recipe of the best point, to be written.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default="tune.html",
    show_default=True,
    help="Page with plots of all points, to be written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the points as JSON.")
@click.option("--log-json", is_flag=True, help="Progress as JSON lines on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def command(
    model_or_recipe: str,
    no_train: bool,
    dry_run: bool,
    best: Path,
    report: Path,
    as_json: bool,
    log_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Search for the best variant of MODEL_OR_RECIPE that meets a budget.

    The budget is the recipe's section `budget`: --max-size, --max-drop, --max-latency and others.
    Targets, precisions, vocabulary, layers, feed-forward columns and recovery are varied (--vary)
    where the recipe leaves them open. Every point
    is compiled and measured on this machine as `edgelm compile` does it, up to the bundle; stopped,
    the same command goes on where it was, and run beside itself on one --cache-dir, or anywhere
    with one --study, it shares the work. The best point's recipe is written to --best, for `edgelm
    compile`, plots to --report.
    """
    from edgelm.compiler.report import render_search
    from edgelm.compiler.tune import make_plan, search
    from edgelm.compiler.tune.show import (
        found_json,
        found_report,
        found_text,
        no_point_error,
        plan_json,
        plan_text,
        recipe_text,
    )
    from edgelm.runtime.files import write_atomic

    recipe = recipe_from(model_or_recipe, flags, no_train)
    progress = Progress("json" if log_json else "quiet" if quiet else "auto")
    plan = make_plan(recipe, progress)
    if dry_run:
        click.echo(json.dumps(plan_json(plan)) if as_json else plan_text(plan))
        return
    progress.note(plan_text(plan))
    found = search(plan, progress)
    click.echo(json.dumps(found_json(found)) if as_json else found_text(found))
    text = None if found.best is None else recipe_text(found)
    write_atomic(report, render_search(found_report(found), recipe.model, text))
    if found.best is None or text is None:
        raise no_point_error(found)
    write_atomic(best, text)
    if not as_json:
        click.echo(f"\nbest    {found.best.name}\nrecipe  {best}\nreport  {report}")
