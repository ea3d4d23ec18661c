"""The web process: listens, keeps the workers, drains when it is told to end.

SIGTERM and SIGINT: no new connections, what was accepted is answered, then the process ends.
SIGHUP: what now stands at the models' paths is served from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

from edgelm.runtime.errors import EdgelmError, UsageError
from edgelm.runtime.serve import log
from edgelm.runtime.serve.chat_lane import ChatLane
from edgelm.runtime.serve.config import ServeConfig
from edgelm.runtime.serve.connection import patient
from edgelm.runtime.serve.figures import Figures
from edgelm.runtime.serve.gate import Gate
from edgelm.runtime.serve.keys import read_keys
from edgelm.runtime.serve.lane import Lane, Version
from edgelm.runtime.serve.log import RequestLog
from edgelm.runtime.serve.routes import router
from edgelm.runtime.serve.site import Site
from edgelm.runtime.serve.text_lane import TextLane


def serve(config: ServeConfig) -> None:
    """Serve until a signal ends it. Raises UsageError, BundleError, StorageError."""
    config.check_access()
    if not config.models:
        raise UsageError("there is nothing to serve", hint="name a bundle, or `models` in the file")
    keys = None if config.keys is None else read_keys(Path(config.keys))
    figures = Figures()
    requests = RequestLog(to_stderr=config.log_requests, audit=config.audit)
    site = Site(config, keys, _lanes(config, figures), figures, requests)
    with _listen(config) as listener:
        server = _Server(_uvicorn(config, site), site)
        server.run(sockets=[listener])
    requests.close()
    log.event("ended")


def _lanes(config: ServeConfig, figures: Figures) -> dict[str, Lane[Any]]:
    lanes: dict[str, Lane[Any]] = {}
    trust = config.trusted()
    for model in config.models:
        version = Version(Path(model.path), trust)
        name = model.name or version.manifest.name
        if name in lanes:
            raise UsageError(
                f"{model.path}: a model {name!r} is served already",
                hint="give each a name of its own in serve.yaml",
            )
        kind = ChatLane if version.manifest.task.kind == "text-generation" else TextLane
        lanes[name] = kind(name, model, version, config, figures)
    return lanes


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as err:
        raise UsageError(
            f"{config.host}:{config.port}: cannot be listened on: {err.strerror or err}"
        ) from err


def _uvicorn(config: ServeConfig, site: Site) -> uvicorn.Config:
    protocol = import_from_string(HTTP_PROTOCOLS["auto"])
    most = config.header_bytes + 4096  # the gate refuses what is over `header_bytes` with a reason
    made = uvicorn.Config(
        Gate(router(site), site),
        http=patient(protocol, config.header_s, most),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=config.connections,
        timeout_keep_alive=config.idle_s,
        timeout_graceful_shutdown=config.drain_s,
        h11_max_incomplete_event_size=most,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        ssl_ca_certs=config.tls_client_ca,
        ssl_cert_reqs=ssl.CERT_NONE if config.tls_client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        made.load()
    except (OSError, ssl.SSLError) as err:
        raise UsageError(f"tls: the certificate or key cannot be used: {err}") from err
    return made


class _Server(uvicorn.Server):
    """uvicorn with the lanes opened around it, and an end by a signal that is an end in order."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site
        self._reloads: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with self._lanes():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        scheme = "http" if self._site.config.tls_cert is None else "https"
        where = f"[{host}]" if ":" in host else host
        log.event("listening", url=f"{scheme}://{where}:{port}", models=list(self._site.lanes))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again when all is done
        if self.should_exit:
            self.force_exit = True
        self._site.draining = True
        self.should_exit = True

    @contextlib.asynccontextmanager
    async def _lanes(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        lanes = list(self._site.lanes.values())
        for lane in lanes:
            lane.open()
        if hasattr(signal, "SIGHUP"):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            log.event("draining_done", answering=sum(lane.n_answering for lane in lanes))
            await asyncio.gather(*(lane.close() for lane in lanes))

    def _reload(self) -> None:
        for lane in self._site.lanes.values():
            task = asyncio.create_task(_reload_one(lane))
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)


async def _reload_one(lane: Lane[Any]) -> None:
    try:
        await lane.reload()
    except (EdgelmError, OSError) as err:
        log.event("reload_failed", model=lane.name, error=str(err), hint=getattr(err, "hint", None))
