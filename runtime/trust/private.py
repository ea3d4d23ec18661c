"""A copy of a bundle's files that nobody else can write to, where others can write to the bundle.

What is checked must be what is read. Engines open files by path, so a file that somebody else can
change, or put another in the place of, could be another by then. Where this user and root alone can
do so, who could is already inside; elsewhere, a copy is what is checked and read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from edgelm.runtime.files import storage_errors


def others_can_write(root: Path, names: Iterable[str]) -> bool:
    """Whether a user other than this one and root may change one of the files below `root`, or
    what a path leads to."""
    if not hasattr(os, "geteuid"):
        return True
    mine = {0, os.geteuid()}
    top = root.resolve()
    inner = {parent for name in names for parent in (top / name).parents}
    for path in {*inner, *(top / name for name in names)}:
        status = path.stat()
        loose = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # in a sticky directory, such as /tmp, others cannot rename what is not theirs
        is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid not in mine or (loose and not is_sticky):
            return True
    return False


class PrivateCopy:
    """A directory of this user's alone, which goes when this object does."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="edgelm-"))
        weakref.finalize(self, shutil.rmtree, str(self.root), ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """The file `name` of the copy, open to be written. Raises StorageError."""
        path = self.root / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("wb") as stream:
                yield stream
            path.chmod(0o400)
