"""edgelm sign"""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.runtime.commands.key_flags import passphrase, passphrase_flags


@click.command(name="sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The private key.")
@click.option(
    "--certificate",
    "certificates",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Certificates of the key, its own first; may be repeated.",
)
@passphrase_flags()
def command(
    bundle: Path,
    key: Path,
    certificates: tuple[Path, ...],
    passphrase_file: Path | None,
    passphrase_env: str | None,
) -> None:
    """Sign BUNDLE: write `model.sig` into it, in the OpenSSF Model Signing format."""
    from edgelm.runtime.trust.envelope import FILE_NAME
    from edgelm.runtime.trust.keys import load_signing_key
    from edgelm.runtime.trust.sign import sign_bundle

    signer = load_signing_key(key, passphrase(passphrase_file, passphrase_env), certificates)
    manifest = sign_bundle(bundle, signer)
    n = sum(1 for _ in manifest.all_files()) + 1
    click.echo(f"signed {n} files of {manifest.name} {manifest.version}: {bundle / FILE_NAME}")
