"""The file of API keys: names, scopes, and SHA-256 digests; the keys themselves are nowhere.

A line a key: `name scope,scope digest`. Keys are 256 random bits, so a plain digest cannot be
reversed by guessing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from edgelm.runtime.errors import UsageError
from edgelm.runtime.files import write_atomic

SCOPES = ("predict", "watch", "admin")
PREFIX = "edgelm-"
MAX_FILE_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """One client."""

    name: str
    scopes: frozenset[str]
    digest: str


class Keys:
    """All keys. Looking one up takes as long whether it is known or not."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    def find(self, secret: bytes) -> Key | None:
        """Whose key it is, None for nobody's."""
        digest = hashlib.sha256(secret).digest()
        found: Key | None = None
        shown = digest.hex()
        for key in self._keys:
            if hmac.compare_digest(shown, key.digest):
                found = key
        return found


def read_keys(path: Path) -> Keys:
    """Raises UsageError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"{path}: cannot be read: {err}", hint="make it with `edgelm keys FILE NAME`"
        ) from err
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        scopes = parts[1].split(",") if len(parts) == 3 else []
        if not scopes or set(scopes) - set(SCOPES) or not _DIGEST.fullmatch(parts[2]):
            raise UsageError(
                f"{path}, line {number}: not `name scopes digest` with scopes of "
                f"{', '.join(SCOPES)}"
            )
        keys.append(Key(parts[0], frozenset(scopes), parts[2]))
    if not keys:
        raise UsageError(f"{path}: holds no keys", hint="make one with `edgelm keys FILE NAME`")
    return Keys(keys)


def add_key(path: Path, name: str, scopes: tuple[str, ...]) -> str:
    """Make a key, append its digest to the file, and return it: it is told this once.

    Raises UsageError, StorageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name: {name!r} must be letters, digits, '.', '_', '-', at most 64")
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if any(line.split()[:1] == [name] for line in old.splitlines()):
        raise UsageError(f"{path}: there is a key {name!r} already", hint="take its line out first")
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    if old and not old.endswith("\n"):
        old += "\n"
    write_atomic(path, f"{old}{name} {','.join(scopes)} {digest}\n")
    path.chmod(0o600)
    return secret
