"""Signing a bundle: `model.sig` in its root, over every other file."""

from __future__ import annotations

from pathlib import Path

from edgelm.runtime.errors import TamperedError
from edgelm.runtime.files import write_atomic
from edgelm.runtime.manifest import FILE_NAME as MANIFEST_NAME
from edgelm.runtime.manifest import Manifest, read_manifest
from edgelm.runtime.trust import tree
from edgelm.runtime.trust.envelope import (
    FILE_NAME,
    read_statement,
    write_envelope,
    write_statement,
)
from edgelm.runtime.trust.keys import SigningKey
from edgelm.runtime.trust.verify import check_manifest


def sign_bundle(root: Path, key: SigningKey) -> Manifest:
    """Write the signature, in the place of one that is there.

    Raises TamperedError unless the bundle's files are those that its manifest names, UntrustedError
    for a file name that no signature may cover, BundleError, StorageError."""
    manifest = read_manifest(root)
    digests = tree.digests(root)
    digests.pop(FILE_NAME, None)
    check_manifest(manifest, digests, root)
    payload = write_statement(manifest.name, digests)
    read_statement(payload)  # which refuses names
    write_atomic(root / FILE_NAME, write_envelope(key.sign(payload)))
    if digests[MANIFEST_NAME] != tree.digest(root, MANIFEST_NAME):
        raise TamperedError(f"{root}: it was changed while it was signed", hint=tree.HINT)
    return manifest
