"""JSON lines on stderr, one an event; no line holds a text of a request or of an answer."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import StorageError


def line_of(name: str, **fields: Any) -> str:
    """An event as a line of JSON."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
    return json.dumps({"time": stamp, "event": name, **fields}, ensure_ascii=False, default=str)


def event(name: str, **fields: Any) -> None:
    """Say what happened."""
    sys.stderr.write(line_of(name, **fields) + "\n")
    sys.stderr.flush()


class RequestLog:
    """A line for each request: to stderr, and to the audit file where there is one."""

    def __init__(self, *, to_stderr: bool, audit: str | None) -> None:
        """Raises StorageError where the file cannot be opened."""
        self._to_stderr = to_stderr
        self._file = -1
        if audit is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            try:
                self._file = os.open(Path(audit), flags, 0o600)
            except OSError as err:
                raise StorageError(f"{audit}: cannot be written: {err.strerror or err}") from err

    def write(self, **fields: Any) -> None:
        """One request, when it was answered."""
        if not self._to_stderr and self._file < 0:
            return
        line = line_of("request", **fields) + "\n"
        if self._to_stderr:
            sys.stderr.write(line)
        if self._file >= 0:
            os.write(self._file, line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Close the audit file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
