"""edgelm profile"""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.engine import Device


@click.command(name="profile")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Texts; the golden ones if left out.")
@click.option("--text-column", help="Column of the text in --data.")
@click.option("--batch", default=1, show_default=True, help="Texts in one call.")
@click.option("--tokens", type=int, help="Tokens of each text; median length when left out.")
@device_option("cpu")
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--seconds", default=3.0, show_default=True, help="Time for each figure.")
def command(
    bundles: tuple[Path, ...],
    data: Path | None,
    text_column: str | None,
    batch: int,
    tokens: int | None,
    device: Device,
    threads: int | None,
    seconds: float,
) -> None:
    """Measure all variants of BUNDLES on this device, for a search on another.

    The figures go to stdout as JSON; `edgelm tune --device-profile FILE` takes latency and memory
    from them. Variants whose engine is not installed here are left out.
    """
    from edgelm.runtime.bench import bench_texts, measure_variant
    from edgelm.runtime.errors import TargetUnavailable, UsageError
    from edgelm.runtime.load import unavailable
    from edgelm.runtime.manifest import read_manifest
    from edgelm.runtime.profile import ProfiledVariant, make_profile

    if batch < 1 or (tokens is not None and tokens < 4):
        raise UsageError(f"--batch {batch} --tokens {tokens}: at least 1 text of at least 4 tokens")
    found: list[ProfiledVariant] = []
    for bundle in bundles:
        manifest = read_manifest(bundle)
        texts = bench_texts(manifest, data, text_column)
        for v in manifest.variants:
            reason = unavailable(v.target, manifest.task.kind, device)
            if reason is not None:
                click.echo(f"{bundle}: {v.name}: skipped: {reason}", err=True)
                continue
            click.echo(f"{bundle}: measuring {v.name} …", err=True)
            measured = measure_variant(
                bundle, v.name, texts, threads=threads, device=device, seconds=seconds,
                batch=batch, tokens=tokens,
            )  # fmt: skip
            found.append(ProfiledVariant(manifest.task.kind, v.target, v.precision, measured))
    if not found:
        raise TargetUnavailable("no variant of these bundles can run here")
    click.echo(make_profile(found).to_json(), nl=False)
