"""One HTTP request: its body read within limits, its answer written, its client watched."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, NoReturn

from starlette.types import Receive, Scope, Send

from edgelm.runtime.errors import EdgelmError, RequestRefused
from edgelm.runtime.serve import refusals
from edgelm.runtime.serve.config import ServeConfig
from edgelm.runtime.serve.keys import Key
from edgelm.runtime.serve.lane import Lane, Request

DEADLINE_HEADER = b"x-edgelm-deadline-ms"
JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
WATCH_AFTER_S = 0.05  # most answers are out before anyone need ask whether the client is there

MAX_DEPTH = 64
MAX_DIGITS = 18  # of a whole number
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")

Body = dict[str, Any]


class Call:
    """One request and its answer."""

    __slots__ = (
        "_receive", "_send", "config", "detail", "headers", "key", "route", "scope", "started",
        "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServeConfig) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self.config = config
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started = time.monotonic()
        self.key: Key | None = None
        self.route = "unknown"
        self.status = 0  # 0 until the answer begins
        self.detail: dict[str, Any] = {}  # for the log: model, tokens, code

    @property
    def client(self) -> str:
        """Who asks: the key's name, else the address."""
        if self.key is not None:
            return self.key.name
        peer = self.scope.get("client")
        return peer[0] if peer else "local"

    @property
    def deadline_s(self) -> float:
        """Seconds that the request may take, from its beginning on."""
        asked = self.headers.get(DEADLINE_HEADER)
        if asked is None:
            return self.config.deadline_s
        if not asked.isdigit() or len(asked) > 9 or int(asked) < 1:
            raise refusals.bad_request(f"{DEADLINE_HEADER.decode()}: a number of ms is needed")
        return min(self.config.deadline_s, int(asked) / 1000)

    async def body(self) -> bytes:
        """The whole body. Raises RequestRefused (408, 413)."""
        limit = self.config.body_bytes
        stated = self.headers.get(b"content-length", b"0")
        if not stated.isdigit() or len(stated) > 15 or int(stated) > limit:
            raise refusals.too_large(limit)
        parts: list[bytes] = []
        n_bytes = 0
        with _Within(self.config.body_s) as within:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise _gone()
                parts.append(message.get("body", b""))
                n_bytes += len(parts[-1])
                if n_bytes > limit:
                    raise refusals.too_large(limit)
                if not message.get("more_body", False):
                    break
        if within.is_over:
            raise refusals.too_slow()
        return b"".join(parts)

    async def json(self) -> Body:
        """The body, a JSON object. Raises RequestRefused (400, 408, 413)."""
        raw = await self.body()
        try:
            _check_depth(raw)
            found = json.loads(raw, parse_constant=_refuse_constant, parse_int=_whole_number)
        except (ValueError, RecursionError) as err:
            raise refusals.bad_request(f"the body is not JSON: {str(err)[:200]}") from err
        if not isinstance(found, dict):
            raise refusals.bad_request("the body is not a JSON object")
        return found

    async def answer(
        self,
        data: Any,
        status: int = 200,
        *,
        kind: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send the whole answer: bytes as they are, anything else as JSON."""
        raw = data if isinstance(data, bytes) else encode(data)
        length = str(len(raw)).encode()
        self.status = status
        head = [(b"content-type", kind), (b"content-length", length), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._write({"type": "http.response.body", "body": raw})

    async def refuse(self, refusal: RequestRefused) -> None:
        """Answer with an error body as OpenAI's clients read it."""
        self.detail["code"] = refusal.code
        headers: list[tuple[bytes, bytes]] = []
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if refusal.status in (408, 413):
            headers.append((b"connection", b"close"))  # what is left of the body is not read
        await self.answer(error_body(refusal), refusal.status, headers=tuple(headers))

    async def stream(self, events: AsyncIterator[Any]) -> None:
        """Send events as they come, each as JSON, and [DONE]. An error becomes the last event."""
        first: Any = await anext(events)  # an error before anything is an ordinary refusal
        self.status = 200
        head = [(b"content-type", EVENTS), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})
        try:
            await self._event(encode(first))
            async for event in events:
                await self._event(encode(event))
        except EdgelmError as err:
            refusal = refusals.refusal_of(err)
            self.detail["code"] = refusal.code
            await self._event(encode(error_body(refusal)))
        await self._event(b"[DONE]")
        await self._write({"type": "http.response.body", "body": b""})

    async def disconnected(self) -> None:
        """Returns when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _event(self, data: bytes) -> None:
        body = b"data: " + data + b"\n\n"
        await self._write({"type": "http.response.body", "body": body, "more_body": True})

    async def _write(self, message: dict[str, Any]) -> None:
        """Raises RequestRefused where the client does not take it in time."""
        with _Within(self.config.write_s) as within:
            await self._send(message)
        if within.is_over:
            raise _gone()


class Watch:
    """Submits a request, and ends it while it is open when its time is over or its client left.

    Raises RequestRefused where the lane does not take it."""

    def __init__(self, call: Call, lane: Lane[Any], request: Request) -> None:
        self._call, self._lane, self._request = call, lane, request

    def __enter__(self) -> None:
        deadline_s = self._call.deadline_s
        left = deadline_s - (time.monotonic() - self._call.started)
        self._lane.submit(self._request)
        loop = asyncio.get_running_loop()
        late = refusals.deadline_passed(deadline_s)
        self._timers = [
            loop.call_later(max(0.0, left), self._request.fail, late),
            loop.call_later(WATCH_AFTER_S, self._watch),
        ]
        self._watching: asyncio.Task[None] | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        self._lane.abandon(self._request)

    def _watch(self) -> None:
        async def wait() -> None:
            await self._call.disconnected()
            self._request.fail(_gone())

        self._watching = asyncio.create_task(wait())


class _Within:
    """Cancels the task it is opened in after some seconds; then `is_over`, and no error is raised.

    As asyncio.timeout, which Python 3.10 lacks, and without a task of its own."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.is_over = False

    def __enter__(self) -> _Within:
        self._task = task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            self.is_over = True
            task.cancel()

        self._timer = asyncio.get_running_loop().call_later(self._seconds, end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._timer.cancel()
        if not (self.is_over and kind is asyncio.CancelledError):
            return False
        uncancel = getattr(self._task, "uncancel", None)  # since Python 3.11
        if uncancel is not None:
            uncancel()
        return True


def encode(data: Any) -> bytes:
    """Compact JSON; half a surrogate pair, which UTF-8 cannot hold, as its escape."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def error_body(refusal: RequestRefused) -> dict[str, Any]:
    """The form that OpenAI's clients read."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def _gone() -> RequestRefused:
    return RequestRefused(499, "client_left", "the client left, or took too long to read")


def _check_depth(raw: bytes) -> None:
    """What is nested deeply would end the recursion of whoever looks at it later."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:20]}… is out of range")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
