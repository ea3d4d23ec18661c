"""edgelm inspect"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(name="inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest as JSON.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds, without running it."""
    from edgelm.runtime.manifest import read_manifest
    from edgelm.runtime.table import variants_table

    manifest = read_manifest(bundle)
    if as_json:
        click.echo(json.dumps(json.loads(manifest.to_json()), ensure_ascii=False))
        return
    task = manifest.task
    click.echo(f"{manifest.name} {manifest.version} (release {manifest.release})")
    if task.kind == "text-classification":
        what = "label sets" if task.problem == "multi_label" else "one label"
        texts = "pairs of texts" if task.pair else "texts"
        click.echo(f"{task.kind}: {texts} to {what} of {len(task.labels)}")
        shown = ", ".join(task.labels[:12]) + (", …" if len(task.labels) > 12 else "")
        click.echo(f"labels: {shown}")
    elif task.kind == "text-generation":
        click.echo(f"{task.kind}: {'answers messages' if task.chat else 'continues texts'}")
    else:
        length = "length one" if task.normalize else "not normalized"
        click.echo(f"{task.kind}: {task.dimensions} dimensions, {task.pooling} pooling, {length}")
    longest = "prompt and answer" if task.kind == "text-generation" else "longest text"
    click.echo(f"{longest}: {manifest.text.max_tokens} tokens\n")
    click.echo(variants_table(manifest))
