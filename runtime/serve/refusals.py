"""Every refusal of a request, with its HTTP status."""

from __future__ import annotations

from typing import Any

from edgelm.runtime.errors import EdgelmError, RequestRefused, TargetUnavailable, UsageError


def bad_request(message: str, param: str | None = None) -> RequestRefused:
    """A value of the request is wrong."""
    return RequestRefused(400, "invalid_value", message, param=param)


def no_key() -> RequestRefused:
    """No key, or one that is not known."""
    return RequestRefused(
        401, "invalid_api_key", "a known API key is needed: Authorization: Bearer …"
    )


def wrong_scope(scope: str) -> RequestRefused:
    """The key is known, and not for this."""
    return RequestRefused(403, "insufficient_scope", f"this API key lacks the scope {scope!r}")


def not_found(path: str) -> RequestRefused:
    """No such route."""
    return RequestRefused(404, "not_found", f"there is nothing at {path}")


def unknown_model(name: object, known: list[str]) -> RequestRefused:
    """No such model."""
    said = f"the model {str(name)[:80]!r} is not served; there are {', '.join(known)}"
    return RequestRefused(404, "model_not_found", said, param="model")


def wrong_method(method: str) -> RequestRefused:
    """The route answers other methods."""
    return RequestRefused(405, "method_not_allowed", f"this route does not answer {method}")


def too_slow() -> RequestRefused:
    """The client took too long to send its request."""
    return RequestRefused(408, "request_timeout", "the request's body did not come in time")


def too_large(limit: int) -> RequestRefused:
    """The body is over the limit."""
    return RequestRefused(413, "request_too_large", f"the body is over {limit} bytes")


def headers_too_large(limit: int) -> RequestRefused:
    """The head is over the limit."""
    return RequestRefused(431, "headers_too_large", f"the headers are over {limit} bytes")


def overloaded(retry_after_s: int) -> RequestRefused:
    """The model's queue is full."""
    said = "the queue of this model is full: try again later"
    return RequestRefused(429, "overloaded", said, retry_after_s=retry_after_s)


def not_ready(name: str, retry_after_s: int = 2) -> RequestRefused:
    """The model's worker is starting."""
    said = f"the model {name!r} is not ready"
    return RequestRefused(503, "not_ready", said, retry_after_s=retry_after_s)


def worker_lost(name: str) -> RequestRefused:
    """The worker died with the request in it."""
    said = f"the worker of {name!r} ended while it answered; it is started anew"
    return RequestRefused(503, "worker_lost", said, retry_after_s=1)


def deadline_passed(deadline_s: float) -> RequestRefused:
    """The request's time is over."""
    return RequestRefused(504, "deadline_exceeded", f"no answer within {deadline_s:g} s")


def answer_error(told: dict[str, Any]) -> EdgelmError:
    """An error that a worker told of one request; see frames.error_header."""
    kind = UsageError if told["kind"] == "usage" else TargetUnavailable
    return kind(told["message"], hint=told["hint"])


def refusal_of(err: EdgelmError) -> RequestRefused:
    """The refusal that an error of the family means to a client."""
    if isinstance(err, RequestRefused):
        return err
    said = err.message if err.hint is None else f"{err.message} ({err.hint})"
    if isinstance(err, UsageError):
        return bad_request(said)
    return RequestRefused(501, "not_available", said)
