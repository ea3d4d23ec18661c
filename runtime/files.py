"""Files that are written whole or not at all, and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from edgelm.runtime.errors import EdgelmError, StorageError

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 16 << 20


def cache_home() -> Path:
    """Where edgelm keeps what can be made again, unless it is told another place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgelm"


def sha256_file(path: Path) -> str:
    """Hex digest of the file's bytes, read in pieces."""
    with path.open("rb", buffering=0) as stream:
        return sha256_stream(stream)


def sha256_stream(stream: FileIO, copy: BinaryIO | None = None) -> str:
    """Hex digest of what is left of a file that is open; `copy` is written the same bytes."""
    digest = hashlib.sha256()
    # Pieces that take the processor some milliseconds: between them other threads get their turn
    # at Python, and this one would wait for it.
    size = os.fstat(stream.fileno()).st_size
    piece = memoryview(bytearray(min(size, PIECE_BYTES) or 1))
    while n := stream.readinto(piece):
        digest.update(piece[:n])
        if copy is not None:
            copy.write(piece[:n])
    return digest.hexdigest()


@contextlib.contextmanager
def storage_errors(path: object) -> Iterator[None]:
    """Turn the disk's refusals (full, read-only, no permission) into StorageError."""
    try:
        yield
    except OSError as err:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "no permission to write",
            errno.EPERM: "no permission to write",
            errno.EEXIST: "a part of the path is a file",
            errno.EISDIR: "it is a directory",
            errno.ENOTEMPTY: "another program changed the directory at the same time",
            errno.ENAMETOOLONG: "the name is too long",
            errno.ENOTDIR: "a part of the path is not a directory",
        }
        if err.errno not in reasons:
            raise
        raise StorageError(f"{path}: {reasons[err.errno]}") from err


@contextlib.contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turn whatever fails inside, when the disk of `folder` is full, into StorageError.

    torch and safetensors tell of a full disk in errors of their own kinds, so the disk is asked.
    """
    try:
        yield
    except EdgelmError:
        raise
    except Exception as err:
        full = shutil.disk_usage(folder).free < CHUNK_BYTES
        if full or os.strerror(errno.ENOSPC) in str(err):
            raise StorageError(f"{folder}: the disk is full") from err
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write through a temporary neighbour, fsync, rename. Raises StorageError."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.is_dir():
        raise StorageError(f"{path}: is a directory, not a file")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: there is no directory {path.parent}")
    with storage_errors(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def sync_tree(root: Path) -> None:
    """fsync every file and directory below `root`, so that a rename that follows is a commit."""
    for folder, _, names in os.walk(root):
        for name in [*names, "."]:
            with contextlib.suppress(PermissionError):  # directories cannot be opened on Windows
                descriptor = os.open(Path(folder) / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def replace_tree(staged: Path, final: Path) -> None:
    """Put the directory `staged` in the place of `final` (which may exist); both on one disk.

    A reader sees the old tree or the new one; between two renames the old one stands beside as
    `.NAME.old`, and is put back by the next call if the process died there.
    """
    sync_tree(staged)
    old = final.with_name(f".{final.name}.old")
    with storage_errors(final):
        if old.exists() and not final.exists():
            old.rename(final)
        if old.is_symlink():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        try:
            staged.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
        with contextlib.suppress(PermissionError):
            descriptor = os.open(final.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        shutil.rmtree(old, ignore_errors=True)


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Which file it is, and of what time: another one, or another content, has another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
