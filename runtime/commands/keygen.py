"""edgelm keygen"""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.runtime.commands.key_flags import passphrase, passphrase_flags


@click.command(name="keygen")
@click.argument("path", type=click.Path(path_type=Path), default="edgelm.key")
@passphrase_flags()
def command(path: Path, passphrase_file: Path | None, passphrase_env: str | None) -> None:
    """Make a key that signs bundles (ECDSA P-256): PATH, and the public one beside it, .pub.

    PATH is readable by its owner alone, and encrypted where a passphrase is given. Nothing that
    exists is written over.
    """
    from edgelm.runtime.trust.keys import make_key

    public = make_key(path, passphrase(passphrase_file, passphrase_env))
    click.echo(f"private key  {path}\npublic key   {public}")
