"""A bundle's files as they lie on the disk: regular files alone, reached without following links.

Where something may be put in a file's place while it is looked at, only the open descriptor counts:
what it is, how long it is, and what its bytes are is asked of that.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from edgelm.runtime.errors import BundleError, TamperedError
from edgelm.runtime.files import sha256_stream

MAX_FILES = 10_000
MAX_DEPTH = 8
HINT = "the bundle was changed or copied incompletely: take a fresh copy of it"
_STEPWISE = os.open in os.supports_dir_fd  # not on Windows
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE = _READ | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe makes none wait
_FOLDER = _READ | getattr(os, "O_DIRECTORY", 0)


def file_names(root: Path) -> set[str]:
    """The paths of all files below `root`.

    Raises TamperedError for links, hard ones too, and for what is no file and no directory;
    BundleError where the disk does not let it be read."""
    found: set[str] = set()
    waiting = [(root, "", 0)]
    try:
        while waiting:
            folder, prefix, depth = waiting.pop()
            if depth > MAX_DEPTH or len(found) > MAX_FILES:
                raise TamperedError(f"{folder}: too deep, or too many files", hint=HINT)
            for path in folder.iterdir():
                name, status = path.name, path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((path, f"{prefix}{name}/", depth + 1))
                else:
                    check_regular(path, status, alone=True)
                    found.add(prefix + name)
    except OSError as err:
        raise _unreadable(root, err) from err
    return found


def check_regular(path: Path, status: os.stat_result, *, alone: bool) -> None:
    """Raise TamperedError unless it is a regular file; `alone`: and has no second name."""
    if not stat.S_ISREG(status.st_mode):
        raise TamperedError(f"{path}: missing, or not a regular file", hint=HINT)
    if alone and status.st_nlink != 1:
        raise TamperedError(f"{path}: the file has {status.st_nlink} names (hard links)", hint=HINT)


@contextlib.contextmanager
def open_inside(root: Path, name: str, *, alone: bool = True) -> Iterator[FileIO]:
    """Open the file of this path below `root` (unbuffered), following no link on the way.

    Raises TamperedError where it is missing, a link, or no regular file; `alone`: or has a second
    name. BundleError where the disk does not let it be read, now or inside."""
    path = root / name
    try:
        descriptor = _open(root, name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as err:
        raise TamperedError(f"{path}: missing, or not a regular file", hint=HINT) from err
    except OSError as err:
        if path.is_symlink() or any(p.is_symlink() for p in path.parents if root in p.parents):
            raise TamperedError(f"{path}: a symbolic link, not a regular file", hint=HINT) from err
        raise _unreadable(path, err) from err
    try:
        check_regular(path, os.fstat(descriptor), alone=alone)
        stream = FileIO(descriptor, "rb", closefd=False)
        yield stream
    except OSError as err:
        raise _unreadable(path, err) from err
    finally:
        os.close(descriptor)


def read_inside(root: Path, name: str, max_bytes: int) -> bytes:
    """All bytes of a small file. Raises as `open_inside`, and BundleError where it is larger."""
    with open_inside(root, name) as stream:
        raw = stream.read(max_bytes + 1) if os.fstat(stream.fileno()).st_size <= max_bytes else None
        if raw is None or len(raw) > max_bytes:
            raise BundleError(f"{root / name}: larger than {max_bytes} bytes")
        return raw


def digests(root: Path) -> dict[str, str]:
    """Every file below `root` and its sha256. Raises as `file_names` and `open_inside`."""
    found: dict[str, str] = {}
    for name in sorted(file_names(root)):
        found[name] = digest(root, name)
    return found


def digest(root: Path, name: str) -> str:
    """The file's sha256. Raises as `open_inside`."""
    with open_inside(root, name) as stream:
        return sha256_stream(stream)


def _open(root: Path, name: str) -> int:
    if not _STEPWISE:
        path = root / name
        if any(p.is_symlink() for p in (path, *path.parents) if root in p.parents):
            raise FileNotFoundError(name)
        return os.open(path, _FILE)
    *folders, last = name.split("/")
    held = os.open(root, _FOLDER & ~os.O_NOFOLLOW)  # the bundle itself may be linked to
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=held)
            os.close(held)
            held = inner
        return os.open(last, _FILE, dir_fd=held)
    finally:
        os.close(held)


def _unreadable(path: Path, err: OSError) -> BundleError:
    return BundleError(f"{path}: cannot be read: {err.strerror or err}")
