"""The table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from edgelm.runtime.serve import api_chat, api_infer, api_texts, api_watch, refusals
from edgelm.runtime.serve.http import Call
from edgelm.runtime.serve.site import Site

Handler = Callable[[Site, Call], Awaitable[None]]


class _Endpoint:
    def __init__(self, site: Site, path: str, scope: str | None, handler: Handler) -> None:
        self._site, self._path, self._scope, self._handler = site, path, scope, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["edgelm.call"]
        call.route = self._path
        if self._scope is not None and call.key is not None and self._scope not in call.key.scopes:
            raise refusals.wrong_scope(self._scope)
        await self._handler(self._site, call)


class _Route(Route):
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is not None and scope["method"] not in self.methods:
            raise refusals.wrong_method(scope["method"])
        await self.app(scope, receive, send)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise refusals.not_found(scope["path"])


def table() -> list[tuple[str, str, str | None, Handler]]:
    """Path, method, scope that a key needs (None: any key), handler."""
    return [
        ("/v1/classify", "POST", "predict", api_texts.classify),
        ("/v1/embeddings", "POST", "predict", api_texts.embeddings),
        ("/v1/chat/completions", "POST", "predict", api_chat.chat_completions),
        ("/v1/completions", "POST", "predict", api_chat.completions),
        ("/v1/models", "GET", None, api_watch.models),
        ("/v1/models/{name}", "GET", None, api_watch.model),
        ("/v2/models/{name}/infer", "POST", "predict", api_infer.infer),
        ("/v2", "GET", None, api_infer.server_metadata),
        ("/v2/models/{name}", "GET", None, api_infer.model_metadata),
        ("/v2/models/{name}/ready", "GET", None, api_infer.model_ready),
        ("/v2/health/live", "GET", None, api_infer.live),
        ("/v2/health/ready", "GET", None, api_infer.ready),
        ("/health/live", "GET", None, api_watch.live),
        ("/health/ready", "GET", None, api_watch.ready),
        ("/v1/inventory", "GET", "watch", api_watch.inventory),
        ("/metrics", "GET", "watch", api_watch.metrics),
        ("/v1/admin/reload", "POST", "admin", api_watch.reload),
        ("/openapi.json", "GET", None, api_watch.openapi),
    ]


def router(site: Site) -> Router:
    """All routes, as an ASGI application."""
    routes = [
        _Route(path, _Endpoint(site, path, scope, handler), methods=[method])
        for path, method, scope, handler in table()
    ]
    return Router(routes, redirect_slashes=False, default=_nowhere)
