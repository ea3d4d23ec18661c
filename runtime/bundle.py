"""A bundle on disk: its manifest, and files that are checked before anyone reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from edgelm.runtime.background import Background
from edgelm.runtime.errors import BundleError, TamperedError
from edgelm.runtime.files import sha256_file
from edgelm.runtime.manifest import FILE_NAME, FileEntry, Manifest, Variant, read_manifest

TOKENIZER_DIR = "tokenizer"


class Bundle:
    """The directory `root`. Opening it reads the manifest and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: Manifest = read_manifest(root)
        self._checks: dict[str, Background[None]] = {}

    def tokenizer_files(self) -> tuple[FileEntry, ...]:
        """The files under tokenizer/."""
        return tuple(f for f in self.manifest.files if f.path.startswith(f"{TOKENIZER_DIR}/"))

    def all_files(self) -> Iterator[FileEntry]:
        """Every file but the manifest itself."""
        yield from self.manifest.files
        for variant in self.manifest.variants:
            yield from variant.files

    def check(self, entries: Iterable[FileEntry]) -> None:
        """Raise TamperedError unless each file is there, regular, of its size and digest.

        BundleError where the disk does not let it be read."""
        for entry in entries:
            path = self.root / entry.path
            try:
                if path.is_symlink() or not path.is_file():
                    raise TamperedError(f"{path}: missing, or not a regular file", hint=_HINT)
                size = path.stat().st_size
                if size != entry.size_bytes:
                    raise TamperedError(
                        f"{path}: {size} bytes, packed with {entry.size_bytes}", hint=_HINT
                    )
                if sha256_file(path) != entry.sha256:
                    raise TamperedError(f"{path}: its sha256 is not the packed one", hint=_HINT)
            except OSError as err:
                raise BundleError(f"{path}: cannot be read: {err.strerror or err}") from err

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

    def extra_files(self) -> list[str]:
        """Files on disk that the manifest does not name."""
        known = {FILE_NAME, *(f.path for f in self.all_files())}
        found = (
            p.relative_to(self.root).as_posix()
            for p in self.root.rglob("*")
            if p.is_symlink() or not p.is_dir()
        )
        return sorted(set(found) - known)


_HINT = "the bundle was changed or copied incompletely: take a fresh copy of it"
