"""Verifying a bundle: the signature first, then which files there are, then what they hold.

No file but `model.sig` is read before its signature is known to be good, and none but the manifest
before it is known to be the signed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelm.runtime.errors import BundleNotFound, TamperedError, UntrustedError
from edgelm.runtime.manifest import FILE_NAME as MANIFEST_NAME
from edgelm.runtime.manifest import MAX_SIZE_BYTES, Manifest, parse_manifest
from edgelm.runtime.trust import tree
from edgelm.runtime.trust.envelope import FILE_NAME, read_envelope, read_statement
from edgelm.runtime.trust.envelope import MAX_SIZE_BYTES as MAX_SIGNATURE_BYTES
from edgelm.runtime.trust.keys import TrustedKeys


@dataclass(frozen=True)
class Signed:
    """A bundle whose signature is good and whose files are the signed ones by name."""

    signer: str
    digests: Mapping[str, str]  # of every file but the signature
    manifest: Manifest


def verify_bundle(root: Path, keys: TrustedKeys) -> Signed:
    """Check signature, names and manifest of the bundle; other files' bytes are not read.

    Raises UntrustedError for the signature, TamperedError for files, BundleError."""
    if not root.is_dir():
        raise BundleNotFound(f"{root}: no such bundle")
    if not (root / FILE_NAME).is_file():
        raise UntrustedError(
            f"{root}: it is not signed", hint="sign it with: edgelm sign BUNDLE --key KEY"
        )
    envelope = read_envelope(tree.read_inside(root, FILE_NAME, MAX_SIGNATURE_BYTES))
    signer = keys.check(envelope)
    digests = read_statement(envelope.payload)
    check_names(root, {*digests, FILE_NAME})
    raw = tree.read_inside(root, MANIFEST_NAME, MAX_SIZE_BYTES)
    if hashlib.sha256(raw).hexdigest() != digests.get(MANIFEST_NAME):
        raise TamperedError(f"{root / MANIFEST_NAME}: not the signed one", hint=tree.HINT)
    manifest = parse_manifest(raw, root / MANIFEST_NAME)
    check_manifest(manifest, digests, root)
    return Signed(signer, digests, manifest)


def check_names(root: Path, expected: set[str]) -> None:
    """Raise TamperedError unless these are the files below `root`, none more and none less."""
    found = tree.file_names(root)
    extra, missing = sorted(found - expected), sorted(expected - found)
    if extra:
        raise TamperedError(f"{root}: not signed: {', '.join(extra[:5])}", hint=tree.HINT)
    if missing:
        raise TamperedError(f"{root}: missing: {', '.join(missing[:5])}", hint=tree.HINT)


def check_manifest(manifest: Manifest, digests: Mapping[str, str], root: Path) -> None:
    """Raise TamperedError unless the manifest names the files of `digests`, with the same sha256,
    and no others."""
    stated = {entry.path: entry.sha256 for entry in manifest.all_files()}
    found = {name: digest for name, digest in digests.items() if name != MANIFEST_NAME}
    if stated != found:
        odd = sorted(stated.items() ^ found.items())[0][0]
        raise TamperedError(
            f"{root / odd}: missing, not named by the manifest, or of another sha256",
            hint=tree.HINT,
        )
