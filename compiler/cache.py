"""The stage cache: a pass's output, kept under the digest of everything that decides it.

    ROOT/<pass>/<key>/            finished, never written again
    ROOT/<pass>/.<key>.partial/   being made; stays after a kill, so that training can go on

A partial folder becomes finished by one rename. Two compiles that want the same stage take turns.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelm import __version__
from edgelm.runtime.files import full_disk_errors, storage_errors, sync_tree


def digest(value: Any) -> str:
    """sha256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class StageCache:
    """Finished stages below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def key(self, name: str, version: int, inputs: dict[str, Any]) -> str:
        """The digest that names a stage of pass `name`, of which `version` is."""
        made_by = {"edgelm": __version__, "layout": version}
        return digest({"pass": name, "made_by": made_by, "inputs": inputs})

    def find(self, name: str, key: str) -> Path | None:
        """The finished folder, or None."""
        folder = self.root / name / key
        return folder if folder.is_dir() else None

    def make(self, name: str, key: str, run: Callable[[Path], None], *, resume: bool) -> Path:
        """Let `run` fill a partial folder, then finish it. With `resume` the partial folder of an
        earlier, interrupted run is handed to `run` as it stands, else an empty one."""
        from filelock import FileLock

        final = self.root / name / key
        partial = self.root / name / f".{key}.partial"
        lock = FileLock(self.root / name / f".{key}.lock")
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            if final.is_dir():  # another compile made it while this one waited
                return final
            with storage_errors(final):
                if not resume:
                    shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(exist_ok=True)
            with full_disk_errors(partial):
                run(partial)
            with storage_errors(final):
                sync_tree(partial)
                partial.rename(final)
        finally:
            lock.release()
        return final
