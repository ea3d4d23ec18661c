"""edgelm doctor"""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Check versions, processor, memory, threads and disk; print the fix for each finding.

    The exit code is 3 where something is wrong; advice does not change it."""
    from edgelm.runtime.doctor import examine
    from edgelm.runtime.errors import TargetUnavailable

    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings], ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{finding.area}: {_MARKS[finding.level]}{finding.found}")
            if finding.fix is not None:
                click.echo(f"  fix: {finding.fix}")
    wrong = [f for f in findings if f.level == "wrong"]
    if wrong:
        raise TargetUnavailable(
            f"{len(wrong)} of {len(findings)} findings are wrong: "
            + ", ".join(dict.fromkeys(f.area for f in wrong)),
            hint=wrong[0].fix,
        )


_MARKS = {"ok": "", "advice": "advice: ", "wrong": "WRONG: "}
