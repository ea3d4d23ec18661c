"""edgelm bench"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.engine import Device


@click.command(name="bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Only this variant; all that can run here when left out.")
@click.option("--data", type=click.Path(path_type=Path), help="Texts; the golden ones if left out.")
@click.option("--text-column", help="Column of the text in --data.")
@device_option()
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--seconds", default=3.0, show_default=True, help="Time for each figure.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    bundle: Path,
    variant: str | None,
    data: Path | None,
    text_column: str | None,
    device: Device,
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure speed and memory of BUNDLE's variants on this device.

    Latency (p50, p95) is of one text of median length at a time; texts/s of all texts in one call.
    Generation: time to the first token after a prompt of median length, tokens per second of a long
    prompt, and of one answer.
    """
    from edgelm.runtime.bench import bench_texts, measure_variant
    from edgelm.runtime.errors import UnknownVariant
    from edgelm.runtime.load import unavailable
    from edgelm.runtime.manifest import Measured, read_manifest
    from edgelm.runtime.table import variants_table

    manifest = read_manifest(bundle)
    chosen = [v for v in manifest.variants if variant in (None, v.name, v.target)]
    if not chosen:
        raise UnknownVariant(f"{bundle}: no variant {variant!r}")
    texts = bench_texts(manifest, data, text_column)
    figures: dict[str, Measured] = {}
    for v in chosen:
        reason = unavailable(v.target, manifest.task.kind, device)
        if reason is not None and variant is None:
            click.echo(f"{v.name}: skipped: {reason}", err=True)
            continue
        click.echo(f"measuring {v.name} …", err=True)
        figures[v.name] = measure_variant(
            bundle, v.name, texts, threads=threads, device=device, seconds=seconds
        )
    if as_json:
        click.echo(json.dumps({k: asdict(m) for k, m in figures.items()}))
    else:
        click.echo(variants_table(manifest, figures))
