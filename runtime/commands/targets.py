"""edgelm targets"""

from __future__ import annotations

import json

import click


@click.command(name="targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the targets, their engines' versions, what each can do here, and why not more."""
    from edgelm.runtime.floors import installed
    from edgelm.runtime.table import format_table
    from edgelm.targets import TARGETS, get_target
    from edgelm.targets.precision import tasks_of

    rows: list[dict[str, object]] = []
    for name in TARGETS:
        target = get_target(name)
        able, tasks = target.capabilities(), tasks_of(target.precisions)
        rows.append(
            {
                "target": name,
                "engine": " ".join(installed(target.engine_package)).strip(),
                "unavailable": target.available(),
                "devices": list(able.devices),
                "devices_by_task": {task: list(able.devices_for(task)) for task in tasks},
                "devices_absent": dict(able.absent),
                "precisions": [row.name for row in target.precisions],
                "tasks": list(tasks),
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    head = ["target", "engine", "runs here", "devices", "precisions"]
    cells = [
        [
            str(r["target"]),
            str(r["engine"]),
            "yes" if r["unavailable"] is None else str(r["unavailable"]),
            _devices(r["devices_by_task"]),  # type: ignore[arg-type]
            " ".join(r["precisions"]),  # type: ignore[arg-type]
        ]
        for r in rows
    ]
    click.echo(format_table(head, cells))
    for r in rows:
        for device, reason in r["devices_absent"].items():  # type: ignore[attr-defined]
            click.echo(f"{r['target']}: no {device}: {reason}")


def _devices(by_task: dict[str, list[str]]) -> str:
    """`cpu`, or what each task has where they differ."""
    found = {task: " ".join(devices) for task, devices in by_task.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{task}: {devices}" for task, devices in found.items())
