"""A limit on how long a client may take for the head of a request, which uvicorn does not have."""

from __future__ import annotations

import asyncio
from typing import Any


def patient(protocol: type[Any], header_s: float) -> type[Any]:
    """uvicorn's protocol, which closes a connection whose request's head is not whole in time.

    A connection that waits for its next request is left to uvicorn's own keep-alive limit."""

    class Patient(protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before or not self._waits():
                self._forget_head()
            elif self._head_timer is None:
                self._expect_head()

        def _waits(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _expect_head(self) -> None:
            self._head_timer = self.loop.call_later(header_s, self._give_up)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self._waits() and not self.transport.is_closing():
                self.transport.close()

    return Patient
