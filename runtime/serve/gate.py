"""What every request passes before it is routed, and what is noted when it is answered.

Default deny: a path that is not named here needs a key, whatever route is added later.
"""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.serve import refusals
from edgelm.runtime.serve.http import Call
from edgelm.runtime.serve.keys import Key
from edgelm.runtime.serve.site import Site

LIVE = ("/health/live", "/v2/health/live")
READY = ("/health/ready", "/v2/health/ready")
MAX_HEADERS = 100


class Gate:
    """ASGI: the site behind its door."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site
        self._open = {*LIVE, *(READY if site.config.open_ready else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(scope, receive, send, self._site.config)
        scope["edgelm.call"] = call
        try:
            self._check_head(call)
            call.key = self._key(call)
            await self._app(scope, receive, send)
        except EdgelmError as err:
            refusal = refusals.refusal_of(err)
            if call.status == 0:
                await call.refuse(refusal)
            else:
                call.detail["code"] = refusal.code
        finally:
            self._note(call)

    def _check_head(self, call: Call) -> None:
        headers = call.scope["headers"]
        n_bytes = sum(len(name) + len(value) for name, value in headers)
        n_bytes += len(call.scope["raw_path"]) + len(call.scope["query_string"])
        limit = call.config.header_bytes
        if n_bytes > limit or len(headers) > MAX_HEADERS:
            raise refusals.headers_too_large(limit)

    def _key(self, call: Call) -> Key | None:
        """Whose key the request shows; None only where none is needed."""
        keys = self._site.keys
        if keys is None or call.scope["path"] in self._open:
            return None
        kind, _, secret = call.headers.get(b"authorization", b"").partition(b" ")
        key = keys.find(secret.strip()) if kind.lower() == b"bearer" else None
        if key is None:
            self._site.figures.rejected.add(1, "no_key")
            raise refusals.no_key()
        return key

    def _note(self, call: Call) -> None:
        seconds = time.monotonic() - call.started
        figures, method = self._site.figures, call.scope["method"]
        status = call.status or 500
        figures.requests.add(1, call.route, method if method in _METHODS else "other", str(status))
        figures.duration.observe(seconds, call.route)
        self._site.requests.write(
            client=call.client,
            method=method,
            route=call.route,
            status=status,
            ms=round(1e3 * seconds, 2),
            **call.detail,
        )


_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
