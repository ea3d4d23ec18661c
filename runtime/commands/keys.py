"""edgelm keys"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="keys")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["predict", "watch", "admin"]),
    default=["predict"],
    show_default=True,
    help="predict: ask models; watch: metrics and inventory; admin: reload. May be repeated.",
)
def command(file: Path, name: str, scopes: tuple[str, ...]) -> None:
    """Make an API key for the client NAME of `edgelm serve`, and print it once.

    FILE holds its digest only; take the client's line out of FILE to withdraw the key.
    """
    from edgelm.runtime.serve.keys import add_key

    click.echo(add_key(file, name, tuple(dict.fromkeys(scopes))))
