"""edgelm eval"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.commands.trust_flags import trust_flags
from edgelm.runtime.engine import Device

if TYPE_CHECKING:
    from edgelm.runtime.trust.policy import Trust


@click.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled texts.")
@click.option("--variant", help="A variant's or a target's name; all that run when left out.")
@device_option()
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--text-column", help="Column of the text.")
@click.option("--pair-column", help="Column of the second text.")
@click.option("--label-column", help="Column of the label.")
@click.option("--label-separator", default=";", show_default=True, help="Between labels of a csv.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@trust_flags
def command(
    bundle: Path,
    data: Path,
    variant: str | None,
    device: Device,
    threads: int | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    label_separator: str,
    as_json: bool,
    trust: Trust,
) -> None:
    """Score BUNDLE's variants on labelled data."""
    from edgelm.runtime.bundle import Bundle
    from edgelm.runtime.errors import UsageError
    from edgelm.runtime.evaluate import Evaluation, evaluate
    from edgelm.runtime.load import load, unavailable
    from edgelm.runtime.table import format_table, number
    from edgelm.runtime.text_model import TextModel

    names: list[str] = [variant] if variant else []
    manifest = Bundle(bundle, trust).manifest
    for v in manifest.variants if not variant else ():
        reason = unavailable(v.target, manifest.task.kind, device)
        if reason is None:
            names.append(v.name)
        else:
            click.echo(f"{v.name}: skipped: {reason}", err=True)
    results: list[Evaluation] = []
    for name in names:
        with load(bundle, variant=name, device=device, threads=threads, trust=trust) as model:
            if not isinstance(model, TextModel):
                raise UsageError(
                    f"{bundle}: its task is {model.task.kind}, which eval cannot score",
                    hint="edgelm verify and edgelm bench can look at it",
                )
            results.append(
                evaluate(
                    model,
                    data,
                    text=text_column,
                    pair=pair_column,
                    label=label_column,
                    label_separator=label_separator,
                )
            )
    if as_json:
        click.echo(json.dumps([asdict(r) for r in results], ensure_ascii=False))
        return
    metrics = list(results[0].metrics) if results else []
    rows = [
        [r.variant, str(r.n), str(r.n_truncated), *(number(r.metrics[m], 4) for m in metrics)]
        for r in results
    ]
    click.echo(format_table(["variant", "texts", "truncated", *metrics], rows))
    if results and results[0].confusions:
        click.echo(f"\nmost confused by {results[0].variant}:")
        for given, found, n in results[0].confusions[:5]:
            click.echo(f"  {n:4d}  {given} taken for {found}")
