"""Keys: a private one signs, public ones and certificates are trusted. PEM files, ECDSA.

New keys are of the curve P-256; P-384 and P-521, which the format knows too, are taken as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.runtime.errors import MissingExtra, StorageError, UntrustedError, UsageError
from edgelm.runtime.files import storage_errors, write_atomic
from edgelm.runtime.trust.envelope import Envelope, signed_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.x509 import Certificate

MAX_PEM_BYTES = 1 << 20
PUBLIC_SUFFIX = ".pub"
_CERTIFICATE, _PUBLIC_KEY = b"-----BEGIN CERTIFICATE-----", b"-----BEGIN PUBLIC KEY-----"


@dataclass(frozen=True)
class SigningKey:
    """A private key and, where a chain of certificates vouches for it, that in DER."""

    private: EllipticCurvePrivateKey
    chain: tuple[bytes, ...] = ()

    def sign(self, payload: bytes) -> Envelope:
        """The payload with its signature."""
        public = self.private.public_key()
        signature = self.private.sign(signed_bytes(payload), algorithm(public))
        hint = None if self.chain else fingerprint(public)
        return Envelope(payload, signature, hint, self.chain)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys by their fingerprints, and certificates that end a chain."""

    public: Mapping[str, EllipticCurvePublicKey]
    roots: tuple[Certificate, ...]

    def check(self, envelope: Envelope) -> str:
        """Who signed: a key's fingerprint, or a certificate's subject. Raises UntrustedError."""
        from cryptography.exceptions import InvalidSignature

        if envelope.chain:
            from edgelm.runtime.trust.certificates import signer_of

            public, who = signer_of(envelope.chain, self.roots)
        else:
            who = f"the key {envelope.key_hint}"
            found = self.public.get(envelope.key_hint or "")
            if found is None:
                raise UntrustedError(
                    f"signed with {who}, which is not trusted",
                    hint="trust its maker's public key, or sign it with a key of yours",
                )
            public = found
        try:
            public.verify(envelope.signature, signed_bytes(envelope.payload), algorithm(public))
        except InvalidSignature as err:
            raise UntrustedError(
                f"the signature is not one of {who} of these files",
                hint="the bundle or its signature was changed: take a fresh copy of it",
            ) from err
        return who


def require_cryptography() -> None:
    """Raises MissingExtra."""
    if importlib.util.find_spec("cryptography") is None:
        raise MissingExtra("cryptography, which makes and checks signatures,", "trust")


def algorithm(public: EllipticCurvePublicKey) -> ECDSA:
    """The hash that goes with the curve. Raises UsageError for another curve."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    found = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}
    if not isinstance(public.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)):
        raise UsageError(f"a key of the curve {public.curve.name}: P-256, P-384 or P-521 is needed")
    return ec.ECDSA(found[public.curve.key_size]())


def fingerprint(public: EllipticCurvePublicKey) -> str:
    """The sha256 of the key's PEM, by which a signature names it."""
    return hashlib.sha256(_pem(public)).hexdigest()


def make_key(path: Path, passphrase: bytes | None) -> Path:
    """Write a new private key to `path`, for its owner alone, and the public one beside it, whose
    path is given back. A passphrase encrypts the private one. Raises StorageError, MissingExtra."""
    require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public_path = path.with_name(path.name.removesuffix(".key") + PUBLIC_SUFFIX)
    for one in (path, public_path):
        if os.path.lexists(one):
            raise StorageError(f"{one}: exists; no key is written over", hint="choose another name")
    key = ec.generate_private_key(ec.SECP256R1())
    cipher = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    raw = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
    with storage_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(descriptor)
    write_atomic(public_path, _pem(key.public_key()))
    return public_path


def load_signing_key(
    path: Path, passphrase: bytes | None = None, certificates: Iterable[Path] = ()
) -> SigningKey:
    """Read a private key; `certificates`: its own and those up to, but not with, the trusted one.

    Raises UsageError, MissingExtra."""
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    try:
        private = load_pem_private_key(_read(path), passphrase)
    except TypeError as err:  # a passphrase too many, or none
        raise UsageError(
            f"{path}: {err}".rstrip("."), hint="see --passphrase-file and --passphrase-env"
        ) from err
    except ValueError as err:
        raise UsageError(f"{path}: not a private key in PEM, or another passphrase: {err}") from err
    if not isinstance(private, EllipticCurvePrivateKey):
        raise UsageError(f"{path}: not an ECDSA key", hint="make one with: edgelm keygen")
    algorithm(private.public_key())
    chain = [c for one in certificates for c in _certificates(_read(one), one)]
    if chain and chain[0].public_key() != private.public_key():
        raise UsageError(f"{path}: the first certificate is not of this key")
    return SigningKey(private, tuple(c.public_bytes(Encoding.DER) for c in chain))


def load_trusted_keys(paths: Iterable[str | os.PathLike[str]]) -> TrustedKeys:
    """Read public keys and certificates. Raises UsageError, MissingExtra."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public: dict[str, EllipticCurvePublicKey] = {}
    roots: list[Certificate] = []
    for path in map(Path, paths):
        raw = _read(path)
        if _CERTIFICATE in raw:
            roots += _certificates(raw, path)
            continue
        key: Any = None
        if _PUBLIC_KEY in raw:
            try:
                key = load_pem_public_key(raw)
            except (ValueError, UnsupportedAlgorithm) as err:
                raise UsageError(f"{path}: not a public key: {err}") from err
        if not isinstance(key, EllipticCurvePublicKey):
            raise UsageError(f"{path}: neither an ECDSA public key nor a certificate, in PEM")
        algorithm(key)
        public[fingerprint(key)] = key
    return TrustedKeys(public, tuple(roots))


def _certificates(raw: bytes, path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(raw)
    except ValueError as err:
        raise UsageError(f"{path}: not certificates in PEM: {err}") from err


def _pem(public: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_PEM_BYTES)
    except OSError as err:
        raise UsageError(f"{path}: cannot be read: {err.strerror or err}") from err
