"""edgelm verify"""

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


@click.command(name="verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Only this variant; all that can run here when left out.")
@device_option()
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@trust_flags
def command(
    bundle: Path,
    variant: str | None,
    device: Device,
    threads: int | None,
    as_json: bool,
    trust: Trust,
) -> None:
    """Check BUNDLE's files, and re-run its golden answers on this device.

    With --key it must be signed by that key, before anything of it is read.
    """
    from edgelm.runtime.bundle import Bundle
    from edgelm.runtime.engine import EngineOptions
    from edgelm.runtime.errors import (
        TamperedError,
        TargetUnavailable,
        UnknownVariant,
        VerificationError,
    )
    from edgelm.runtime.verify import verify_files, verify_variant

    opened = Bundle(bundle, trust)
    checks, options = [verify_files(opened)], EngineOptions(device, threads)
    if checks[0].ok:
        chosen = [v for v in opened.manifest.variants if variant in (None, v.name, v.target)]
        if not chosen:
            raise UnknownVariant(f"{bundle}: no variant {variant!r}")
        checks += [verify_variant(opened, v, options) for v in chosen]
    if as_json:
        click.echo(json.dumps([asdict(c) for c in checks], ensure_ascii=False))
    else:
        for check in checks:
            mark = "skipped" if check.skipped else "ok" if check.ok else "FAILED"
            click.echo(f"{check.name}: {mark}: {check.detail}")
    if not checks[0].ok:
        raise TamperedError(f"{bundle}: {checks[0].detail}")
    if all(c.skipped for c in checks[1:]):
        raise TargetUnavailable(
            f"{bundle}: no variant could be run on device {device}, so no answer was checked",
            hint=checks[1].detail,
        )
    failed = [c.name for c in checks if not c.ok]
    if failed:
        raise VerificationError(f"{bundle}: other answers than packed: {', '.join(failed)}")
