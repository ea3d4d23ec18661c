"""A bundle on disk: its manifest, and files that are checked before anyone reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from edgelm.runtime.background import Background
from edgelm.runtime.errors import TamperedError
from edgelm.runtime.files import identity, sha256_stream
from edgelm.runtime.manifest import FILE_NAME, FileEntry, Manifest, Variant, read_manifest
from edgelm.runtime.trust import tree
from edgelm.runtime.trust.envelope import FILE_NAME as SIGNATURE
from edgelm.runtime.trust.policy import NO_TRUST, Trust
from edgelm.runtime.trust.private import PrivateCopy, others_can_write

TOKENIZER_DIR = "tokenizer"


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Bundle:
    """The directory `root`. Opening it checks the signature where `trust` asks for one, and reads
    the manifest and nothing else.

    Files are read in `folder`: the bundle itself or, where it is signed and others can write to it,
    a copy that is made as they are checked. `signer` says who signed, None without trust.
    """

    def __init__(self, root: Path, trust: Trust = NO_TRUST) -> None:
        """Raises BundleNotFound, BundleVersionError, BundleError; with trust UntrustedError,
        TamperedError, MissingExtra, UsageError."""
        # resolved once: a link that is put elsewhere later leads to no other bundle
        self.root = self.folder = root = Path(os.path.realpath(root))
        signed = trust.check(root)
        self.signer: str | None = None if signed is None else signed.signer
        self.manifest: Manifest = read_manifest(root) if signed is None else signed.manifest
        self._copy: PrivateCopy | None = None
        if signed is not None and others_can_write(root, signed.digests):
            self._copy = PrivateCopy()
            self.folder = self._copy.root
        self._checks: dict[str, Background[None]] = {}
        self._seen: dict[str, tuple[int, ...]] = {}  # which file it was whose digest is known

    def tokenizer_files(self) -> tuple[FileEntry, ...]:
        """The files under tokenizer/."""
        return tuple(f for f in self.manifest.files if f.path.startswith(f"{TOKENIZER_DIR}/"))

    def all_files(self) -> Iterator[FileEntry]:
        """Every file but the manifest itself, and a signature."""
        return self.manifest.all_files()

    def check(self, entries: Iterable[FileEntry]) -> None:
        """Raise TamperedError unless each file is there, regular, of its size and digest.

        BundleError where the disk does not let it be read, StorageError where it takes no copy."""
        for entry in entries:
            if self._copy is not None and entry.path in self._seen:
                continue
            path = self.root / entry.path
            with tree.open_inside(self.root, entry.path, alone=self.signer is not None) as stream:
                status = os.fstat(stream.fileno())
                if status.st_size != entry.size_bytes:
                    raise TamperedError(
                        f"{path}: {status.st_size} bytes, packed with {entry.size_bytes}",
                        hint=tree.HINT,
                    )
                with self._copying(entry.path) as copy:
                    found = sha256_stream(stream, copy)
                if found != entry.sha256:
                    raise TamperedError(f"{path}: its sha256 is not the packed one", hint=tree.HINT)
            self._seen[entry.path] = identity(status)

    def _copying(self, name: str) -> AbstractContextManager[BinaryIO | None]:
        return contextlib.nullcontext() if self._copy is None else self._copy.writing(name)

    def start_check(self, variant: Variant) -> None:
        """Begin to check the variant's files beside other work; `check_variant` has the outcome."""
        self._checks[variant.name] = Background(self.check, variant.files)

    def check_tokenizer(self) -> None:
        """Check the files under tokenizer/."""
        self.check(self.tokenizer_files())

    def check_variant(self, variant: Variant) -> None:
        """Check the variant's files, or wait for the check of them that was begun."""
        started = self._checks.pop(variant.name, None)
        if started is None:
            self.check(variant.files)
        else:
            started.result()

    def open_variant(self, variant: Variant, open_: Callable[[Path], T]) -> T:
        """Check the variant's files, call `open_` with the folder to read them in, and make sure
        that no other files were there by then. Raises as `check` and `open_`."""
        self.check_variant(variant)
        opened = open_(self.folder)
        if self._copy is None:
            for entry in variant.files:
                with contextlib.suppress(OSError):
                    if identity(os.lstat(self.root / entry.path)) == self._seen[entry.path]:
                        continue
                opened.close()
                raise TamperedError(
                    f"{self.root / entry.path}: it was changed while it was opened", hint=tree.HINT
                )
        return opened

    def extra_files(self) -> list[str]:
        """Files on disk that the manifest does not name; a signature is none."""
        known = {FILE_NAME, SIGNATURE, *(f.path for f in self.all_files())}
        found = (
            p.relative_to(self.root).as_posix()
            for p in self.root.rglob("*")
            if p.is_symlink() or not p.is_dir()
        )
        return sorted(set(found) - known)
