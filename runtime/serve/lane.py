"""One served model: its queue, its worker, restarts after a crash, and new versions.

A worker that ends takes the requests that it was answering with it (503); those that wait stay. A
new version is loaded beside the old one, which finishes what it has while the new one takes what
waits: no request fails, and no answer is made by both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import EdgelmError, UsageError
from edgelm.runtime.manifest import FILE_NAME, Manifest
from edgelm.runtime.serve import log, refusals
from edgelm.runtime.serve.config import ModelConfig, ServeConfig
from edgelm.runtime.serve.figures import Figures
from edgelm.runtime.serve.frames import Header
from edgelm.runtime.serve.process import WorkerProcess
from edgelm.runtime.serve.waiting import FairQueue, Waiting
from edgelm.runtime.trust.policy import Trust

BACKOFF_S = (0.1, 0.5, 1, 2, 5, 10, 30)  # before each start of those that fail in a row
STEADY_S = 60.0  # a worker that lived so long starts the row anew
RATE_S = 30.0  # over which the tokens of a second are counted


class Request(Waiting, ABC):
    """One request to a model, waiting or being answered."""

    __slots__ = ("arrived", "id", "manifest", "worker")

    def __init__(self, client: str, n_tokens: int) -> None:
        super().__init__(client, n_tokens)
        self.id = 0
        self.manifest: Manifest | None = None  # of the version that answers it
        self.arrived = time.monotonic()
        self.worker: WorkerProcess | None = None  # who answers it

    @abstractmethod
    def fail(self, err: EdgelmError) -> None:
        """Tell whoever waits for the answer."""


R = TypeVar("R", bound=Request)


class Version:
    """What is served: the manifest as it was when its worker was started, and who signed it."""

    def __init__(self, path: Path, trust: Trust) -> None:
        bundle = Bundle(path, trust)
        self.manifest: Manifest = bundle.manifest
        self.signer = bundle.signer
        self.digest = hashlib.sha256((path / FILE_NAME).read_bytes()).hexdigest()


class Lane(ABC, Generic[R]):
    """The base of text_lane.py and chat_lane.py."""

    def __init__(
        self, name: str, model: ModelConfig, version: Version, serve: ServeConfig, figures: Figures
    ) -> None:
        self.name = name
        self.config = model
        self.version = version
        self.queue: FairQueue[R] = FairQueue(serve.queue_tokens, serve.queue_requests)
        self.worker: WorkerProcess | None = None
        self.created_s = int(time.time())
        self._serve = serve
        self._figures = figures
        # old versions that finish their answers
        self._leaving: dict[WorkerProcess, asyncio.Task[None]] = {}
        self._answering: dict[int, R] = {}
        self._last_id = 0
        self._done: deque[tuple[float, int]] = deque()  # when so many tokens were answered
        self._keeping: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._swapping = asyncio.Lock()
        self._idle = asyncio.Event()
        self.closed = False
        self.failure: str | None = None  # why the last start failed
        self.n_restarts = 0

    @property
    def manifest(self) -> Manifest:
        """Of the version that takes new requests."""
        return self.version.manifest

    @property
    def is_ready(self) -> bool:
        """Whether a worker that passed its golden answers takes requests."""
        return self.worker is not None

    @property
    def n_answering(self) -> int:
        """Requests in workers."""
        return len(self._answering)

    def open(self) -> None:
        """Begin to keep a worker running."""
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the workers. Requests that are left fail."""
        self.closed = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        worker, self.worker = self.worker, None
        leaving = list(self._leaving.values())
        await asyncio.gather(*leaving, *([worker.stop()] if worker else []))
        while (request := self.queue.take()) is not None:
            request.dropped = True
            request.fail(refusals.worker_lost(self.name))

    def submit(self, request: R) -> None:
        """Let it wait, or begin it at once. Raises RequestRefused (429, 503)."""
        if self.worker is None:
            self._figures.rejected.add(1, "not_ready")
            raise refusals.not_ready(self.name)
        if not self.queue.put(request):
            self._figures.rejected.add(1, "queue_full")
            raise refusals.overloaded(self._retry_after_s())
        self.pump()

    def abandon(self, request: R) -> None:
        """Nobody waits for the answer any more."""
        if request.worker is None:
            self.queue.drop(request)
        elif not request.dropped and self.find(request.id) is request:
            request.dropped = True
            self.on_abandoned(request)

    @abstractmethod
    def pump(self) -> None:
        """Hand to the worker what it has room for."""

    @abstractmethod
    def on_message(self, worker: WorkerProcess, header: Header, blob: bytes) -> None:
        """Something that a worker said."""

    def on_abandoned(self, request: R) -> None:
        """A request in a worker was abandoned."""

    async def reload(self) -> None:
        """Put the bundle that now stands at the path in the place of the one that is served.

        Raises EdgelmError where it does not load or its golden answers fail; then all stays."""
        async with self._swapping:
            version, worker = await self._load()
            old, self.worker, self.version = self.worker, worker, version
            log.event("swapped", model=self.name, digest=version.digest, **worker.facts)
            self._figures.swaps.add(1, self.name)
            self.pump()
            if old is not None:
                self._leaving[old] = asyncio.create_task(self._finish(old))

    def begin(self, request: R) -> int:
        """Note that the request goes to the worker now; its number in messages."""
        self._last_id += 1
        request.id, request.worker = self._last_id, self.worker
        request.manifest = self.manifest
        self._answering[request.id] = request
        self._figures.queue_wait.observe(time.monotonic() - request.arrived, self.name)
        return request.id

    def end(self, request: R, n_tokens: int = 0) -> None:
        """Note that the worker is done with it, after `n_tokens`."""
        self._answering.pop(request.id, None)
        now = time.monotonic()
        self._done.append((now, n_tokens or request.n_tokens))
        while self._done and self._done[0][0] < now - RATE_S:
            self._done.popleft()
        if self._leaving and not any(r.worker in self._leaving for r in self._answering.values()):
            self._idle.set()

    def find(self, number: int) -> R | None:
        """The request of that number that is being answered."""
        return self._answering.get(number)

    def _retry_after_s(self) -> int:
        """When about half of what waits will be answered, at the pace of the last seconds."""
        if not self._done:
            return 1
        seconds = max(0.1, time.monotonic() - self._done[0][0])
        pace = sum(n for _, n in self._done) / seconds
        return max(1, min(60, math.ceil(self.queue.n_tokens / 2 / max(1.0, pace))))

    async def _keep(self) -> None:
        """Keep a worker running, with a pause before each start that follows a failure."""
        n_failed = 0
        while not self.closed:
            started = time.monotonic()
            self._lost.clear()
            try:
                async with self._swapping:
                    if self.worker is None:  # or a new version came in the meantime
                        await self._start()
            except (EdgelmError, OSError) as err:
                self.failure, hint = str(err), getattr(err, "hint", None)
                log.event("start_failed", model=self.name, error=self.failure, hint=hint)
            else:
                await self._lost.wait()
                self.n_restarts += 1
                self._figures.restarts.add(1, self.name)
                log.event("worker_lost", model=self.name)
            n_failed = 0 if time.monotonic() - started > STEADY_S else n_failed + 1
            await asyncio.sleep(BACKOFF_S[min(n_failed, len(BACKOFF_S)) - 1] if n_failed else 0)

    async def _start(self) -> None:
        self.version, worker = await self._load()
        self.worker, self.failure = worker, None
        log.event("ready", model=self.name, **worker.facts)
        self.pump()

    async def _load(self) -> tuple[Version, WorkerProcess]:
        """The bundle that stands at the path now, in a worker that passed its golden answers."""
        trust = self._serve.trusted()
        version = Version(Path(self.config.path), trust)
        old, new = self.manifest.task.kind, version.manifest.task.kind
        if old != new:
            raise UsageError(f"{self.config.path}: its task is {new} now, {old} is served")
        worker = WorkerProcess(self.config, trust, self.on_message, self._on_end)
        await worker.start()
        return version, worker

    def _on_end(self, worker: WorkerProcess) -> None:
        lost = [r for r in self._answering.values() if r.worker is worker]
        for request in lost:
            self.end(request)
            if not request.dropped:
                request.fail(refusals.worker_lost(self.name))
        self.on_lost()
        if worker is self.worker:
            self.worker = None
            self._lost.set()
        self.pump()

    def on_lost(self) -> None:
        """A worker ended; its requests were told."""

    async def _finish(self, old: WorkerProcess) -> None:
        """Wait for the answers of a version that was replaced, then end it."""
        deadline = time.monotonic() + self._serve.deadline_s
        while any(r.worker is old for r in self._answering.values()):
            self._idle.clear()
            if time.monotonic() > deadline:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), 1.0)
        await old.stop()
        del self._leaving[old]

    def facts(self) -> dict[str, Any]:
        """What the inventory says of it."""
        manifest = self.manifest
        facts = {} if self.worker is None else self.worker.facts
        return {
            "id": self.name,
            "bundle": manifest.name,
            "version": manifest.version,
            "release": manifest.release,
            "task": manifest.task.kind,
            "digest": f"sha256:{self.version.digest}",
            "signer": self.version.signer,
            "ready": self.is_ready,
            "failure": self.failure,
            "restarts": self.n_restarts,
            **{name: facts.get(name) for name in ("variant", "device", "engine", "golden")},
        }
