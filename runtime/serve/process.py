"""A worker process, seen from the web process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edgelm.runtime.errors import BundleError, EdgelmError, TargetUnavailable
from edgelm.runtime.serve.config import ModelConfig
from edgelm.runtime.serve.frames import Header, pack, read_frame_async
from edgelm.runtime.trust.policy import Trust

STOP_S = 5.0  # a worker has to end after its stdin did

OnMessage = Callable[["WorkerProcess", Header, bytes], None]
OnEnd = Callable[["WorkerProcess"], None]


class WorkerProcess:
    """One process with one loaded bundle. `start` it, then `send`; answers come to `on_message`."""

    def __init__(
        self, config: ModelConfig, trust: Trust, on_message: OnMessage, on_end: OnEnd
    ) -> None:
        self._config, self._trust = config, trust
        self._on_message, self._on_end = on_message, on_end
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.facts: Header = {}

    @property
    def pid(self) -> int | None:
        """Of the process, once it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start and load; returns when the golden answers were checked.

        Raises TargetUnavailable with what the worker says of its bundle, or that it died."""
        command = [sys.executable, "-m", "edgelm.runtime.serve.worker"]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            json.dumps({**asdict(self._config), "trust": asdict(self._trust)}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            header, _ = await read_frame_async(self._process.stdout)
        except (asyncio.IncompleteReadError, BundleError) as err:
            code = await self._reap()
            raise TargetUnavailable(
                f"{self._config.path}: the worker ended with {code} while it loaded",
                hint="its own words stand above in the server's stderr",
            ) from err
        except BaseException:
            self.kill()
            raise
        if header["op"] == "failed":
            await self._reap()
            error = header["error"]
            raise TargetUnavailable(error["message"], hint=error["hint"])
        self.facts = {name: value for name, value in header.items() if name != "op"}
        self._reading = asyncio.create_task(self._read(self._process.stdout))

    def send(self, header: Header) -> None:
        """Hand over a message; one to a dead worker is lost, which `on_end` tells of."""
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(pack(header))

    async def stop(self) -> None:
        """End it by the end of its stdin, or by force."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except asyncio.TimeoutError:
            await self._reap()
        if self._reading is not None:
            await self._reading

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _reap(self) -> int:
        assert self._process is not None
        self.kill()
        return await self._process.wait()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        try:
            while True:
                header, blob = await read_frame_async(stream)
                self._on_message(self, header, blob)
        except (asyncio.IncompleteReadError, ConnectionError, EdgelmError):
            pass
        finally:
            self.kill()
            self._on_end(self)

    def memory_bytes(self) -> int | None:
        """Resident memory, where the system tells it."""
        return _resident_bytes(self.pid)


def _resident_bytes(pid: Any) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:  # noqa: PTH123
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
