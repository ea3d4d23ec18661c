"""What stands in `model.sig`: a sigstore bundle around a DSSE envelope around an in-toto statement.

Reading is strict, so that no byte of a signature can be changed and still be read: known keys
alone, base64 in its one spelling, one signature. Nothing here knows of keys or of files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelm.runtime.errors import BundleError, UntrustedError
from edgelm.runtime.manifest import parse_json

FILE_NAME = "model.sig"
MAX_SIZE_BYTES = 8 * 2**20
MAX_CERTIFICATES = 8
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Envelope:
    """A signature and what it is of. Either `key_hint` or `chain` says whose it is."""

    payload: bytes
    signature: bytes
    key_hint: str | None = None  # sha256 of the public key's PEM
    chain: tuple[bytes, ...] = ()  # certificates in DER, the signer's first


def signed_bytes(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of the payload."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def write_envelope(envelope: Envelope) -> bytes:
    """The bytes of `model.sig`."""
    if envelope.chain:
        certificates = [{"rawBytes": _encode(der)} for der in envelope.chain]
        material: dict[str, Any] = {"x509CertificateChain": {"certificates": certificates}}
    else:
        material = {"publicKey": {"hint": envelope.key_hint}}
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _encode(envelope.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _encode(envelope.signature), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def read_envelope(raw: bytes) -> Envelope:
    """Read `model.sig`. Raises UntrustedError."""
    bundle = _mapping(_json(raw), "the file", {"mediaType", "verificationMaterial", "dsseEnvelope"})
    _same(bundle["mediaType"], MEDIA_TYPE, "mediaType")
    material = _mapping(
        bundle["verificationMaterial"],
        "verificationMaterial",
        set(),
        {"publicKey", "x509CertificateChain", "tlogEntries"},
    )
    _same(material.get("tlogEntries", []), [], "tlogEntries")
    if ("publicKey" in material) == ("x509CertificateChain" in material):
        raise _bad("verificationMaterial: either a public key or certificates are needed")
    hint, chain = None, ()
    if "publicKey" in material:
        hint = _mapping(material["publicKey"], "publicKey", {"hint"})["hint"]
        if not isinstance(hint, str) or not _DIGEST.fullmatch(hint):
            raise _bad("publicKey.hint: not a sha256 digest")
    else:
        chain = _chain(material["x509CertificateChain"])
    dsse = _mapping(
        bundle["dsseEnvelope"], "dsseEnvelope", {"payload", "payloadType", "signatures"}
    )
    _same(dsse["payloadType"], PAYLOAD_TYPE, "payloadType")
    (signature,) = _list(dsse["signatures"], "signatures", 1)
    signature = _mapping(signature, "signatures", {"sig"}, {"keyid"})
    if signature.get("keyid") not in (None, ""):
        raise _bad("keyid: none is needed")
    payload = _decode(dsse["payload"], "payload")
    return Envelope(payload, _decode(signature["sig"], "sig"), hint, chain)


def write_statement(name: str, digests: Mapping[str, str]) -> bytes:
    """The payload: every file by its path, and its sha256. `name` is for people."""
    names = sorted(digests)
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[n]) for n in names)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [FILE_NAME],
            },
            "resources": [{"name": n, "algorithm": "sha256", "digest": digests[n]} for n in names],
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode()


def read_statement(payload: bytes) -> dict[str, str]:
    """Every signed file and its sha256. Raises UntrustedError."""
    statement = _mapping(
        _json(payload), "the statement", {"_type", "subject", "predicateType", "predicate"}
    )
    _same(statement["_type"], STATEMENT_TYPE, "_type")
    _same(statement["predicateType"], PREDICATE_TYPE, "predicateType")
    predicate = _mapping(statement["predicate"], "predicate", {"resources", "serialization"})
    serialization = _mapping(
        predicate["serialization"],
        "serialization",
        {"method", "hash_type", "allow_symlinks"},
        {"ignore_paths"},
    )
    _same(serialization["method"], "files", "serialization.method")
    _same(serialization["hash_type"], "sha256", "serialization.hash_type")
    _same(serialization["allow_symlinks"], False, "serialization.allow_symlinks")
    if serialization.get("ignore_paths", []) not in ([], [FILE_NAME]):
        raise _bad(
            "serialization.ignore_paths: files that no digest covers may not be ignored",
            hint="sign the bundle again, with no ignored paths (git's are ignored by default)",
        )
    digests: dict[str, str] = {}
    for i, entry in enumerate(_list(predicate["resources"], "resources")):
        where = f"resources[{i}]"
        name, digest = _resource(entry, where)
        if name in digests or name == FILE_NAME:
            raise _bad(f"{where}: {name} stands twice, or is the signature itself")
        digests[name] = digest
    (subject,) = _list(statement["subject"], "subject", 1)
    subject = _mapping(subject, "subject", {"name", "digest"})
    root = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    _same(subject["digest"], {"sha256": root}, "subject.digest")
    return digests


def _resource(entry: object, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise _bad(f"{where}: not a mapping")
    name, digest = entry.get("name"), entry.get("digest")
    _same(entry.get("algorithm"), "sha256", f"{where}.algorithm")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(f"{where}: {str(name)[:80]!r} is not an allowed file name")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _bad(f"{where}: not a sha256 digest")
    return name, digest


def _chain(value: object) -> tuple[bytes, ...]:
    certificates = _mapping(value, "x509CertificateChain", {"certificates"})["certificates"]
    found = _list(certificates, "certificates")
    if not 1 <= len(found) <= MAX_CERTIFICATES:
        raise _bad(f"certificates: {len(found)}, from 1 to {MAX_CERTIFICATES} are needed")
    entries = [_mapping(c, "certificates", {"rawBytes"}) for c in found]
    return tuple(_decode(entry["rawBytes"], "rawBytes") for entry in entries)


def _json(raw: bytes) -> Any:
    try:
        return parse_json(raw, FILE_NAME)
    except BundleError as err:
        raise UntrustedError(err.message, hint=_HINT) from err


def _mapping(
    value: object, where: str, needed: set[str], optional: set[str] | None = None
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"{where}: not a mapping")
    missing, unknown = needed - value.keys(), value.keys() - needed - (optional or set())
    if missing or unknown:
        wrong = f"{min(missing)} is missing" if missing else f"{min(unknown)[:80]!r} is not known"
        raise _bad(f"{where}: {wrong}")
    return value


def _list(value: object, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or not value or len(value) != (length or len(value)):
        raise _bad(f"{where}: not a list of {length or 'at least 1'}")
    return value


def _same(value: object, expected: object, where: str) -> None:
    if value != expected or type(value) is not type(expected):
        raise _bad(f"{where}: {str(value)[:80]!r}, only {expected!r} is read here")


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: object, where: str) -> bytes:
    try:
        raw = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as err:
        raise _bad(f"{where}: not base64") from err
    if _encode(raw) != text:  # bits behind the last byte
        raise _bad(f"{where}: not base64 in its one spelling")
    return raw


def _bad(message: str, *, hint: str | None = None) -> UntrustedError:
    return UntrustedError(f"{FILE_NAME}: {message}", hint=hint or _HINT)


_HINT = "take a fresh copy of the bundle, or have it signed again: edgelm sign BUNDLE --key KEY"
