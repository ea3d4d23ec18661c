"""What uvicorn's connections lack: a limit on the time for a request's head, and answers that are
sent in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

READ_BYTES = 2**18  # that come at once, of the request before as well


def patient(protocol: type[Any], header_s: float, header_bytes: int) -> type[Any]:
    """uvicorn's protocol, which closes a connection whose request's head is not whole in time, or
    has no end.

    A connection that waits for its next request is left to uvicorn's own keep-alive limit."""
    limits = {"header_s": header_s, "header_bytes": header_bytes}
    return type("Patient", (_Patience, protocol), limits)


class _Patience(asyncio.Protocol):
    """Before uvicorn's protocol in the order of bases."""

    header_s: float
    header_bytes: int
    cycle: Any  # uvicorn's, of the last request
    loop: Any
    transport: Any
    _head_timer: asyncio.TimerHandle | None = None
    _n_head = 0  # bytes of a head that is not whole
    _in_head = False  # httptools tells; h11 has a limit of its own

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_Joined(transport))  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_head, self._n_head = True, 0
        cast(Any, super()).on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        cast(Any, super()).on_headers_complete()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self._in_head and not _is_idle(self):  # the next one's, behind an open request
            self._n_head += len(data)
            if self._n_head > self.header_bytes + READ_BYTES:
                self.transport.close()
        elif self.cycle is not before or not _is_idle(self):
            self._forget_head()
        else:
            self._n_head += len(data)
            if self._n_head > self.header_bytes:
                self._give_up()
            elif self._head_timer is None:
                self._expect_head()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.header_s, self._give_up)

    def _forget_head(self) -> None:
        self._n_head = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._forget_head()
        if _is_idle(self) and not self.transport.is_closing():
            self.transport.close()


def _is_idle(connection: Any) -> bool:
    """Whether no request is being answered."""
    return connection.cycle is None or connection.cycle.response_complete


class _Joined:
    """A transport that sends at once what is written in one turn of the loop.

    uvicorn writes head and body by themselves: two calls of the system, and a client that wakes up
    twice."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
