"""A real server in a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 300.0  # the machine may be busy


class Served:
    """A server; `events` are the lines of its log so far."""

    def __init__(self, arguments: Sequence[object], env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "edgelm", "serve", *map(str, arguments), "--port", "0"]
        if "--trust-key" not in arguments:
            command += ["--trust", "none"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for("listening")["url"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{"):
                self.events.append(json.loads(line))

    def wait_for(self, name: str, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The first event of that name and those fields behind the first `after`."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for event in self.events[after:]:
                if event["event"] == name and fields.items() <= event.items():
                    return event
            assert self.process.poll() is None or self._reader.is_alive(), "".join(self.lines)
            time.sleep(0.02)
        raise AssertionError(f"no {name} {fields}: {''.join(self.lines)}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the web process."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Drain; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


@contextmanager
def serving(
    *arguments: object, ready: Sequence[str] = (), env: dict[str, str] | None = None
) -> Iterator[Served]:
    """A server that is ready, and its end in order."""
    served = Served(arguments, env)
    try:
        for name in ready:
            served.wait_for("ready", model=name)
        yield served
        assert served.end() == 0, "".join(served.lines)
    finally:
        served.process.kill()
        served.process.wait()


def client_of(served: Served, key: str | None = None) -> httpx.Client:
    """A client with that key."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=served.url, headers=headers, timeout=PATIENCE_S, trust_env=False)


def write_config(path: Path, **keys: Any) -> Path:
    """serve.yaml; JSON is YAML."""
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


def figure(http: httpx.Client, line: str) -> float:
    """A sample of /metrics, 0 where there is none."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return 0 if found is None else float(found[1])


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
