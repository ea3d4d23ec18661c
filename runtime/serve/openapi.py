"""The OpenAPI document: the table of routes, with the bodies that they take."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgelm import __version__
from edgelm.runtime.serve.gate import LIVE

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_TEXTS: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
# a pair of texts is a list of two, so a list may hold such lists
_INPUT: Schema = {
    "anyOf": [
        _TEXT,
        {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, {"type": "array"}]}},
    ]
}
_ON_LONG: Schema = {"enum": ["truncate", "error"]}


def _body(required: list[str], **keys: Schema) -> Schema:
    return {
        "type": "object",
        "required": required,
        "properties": keys,
        "additionalProperties": False,
    }


_SAMPLING: dict[str, Schema] = {
    "model": _TEXT,
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 100},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    "seed": {"type": "integer", "minimum": 0},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 16}]},
    "stream": _FLAG,
    "stream_options": _body([], include_usage=_FLAG),
    "grammar": _TEXT,
    "regex": _TEXT,
    "choices": {"type": "array", "items": _TEXT, "minItems": 1},
    "n": {"const": 1},
    "frequency_penalty": {"const": 0},
    "presence_penalty": {"const": 0},
    "logit_bias": {"const": {}},
    "user": _TEXT,
    "metadata": _OBJECT,
    "store": _FLAG,
    "service_tier": _TEXT,
    "safety_identifier": _TEXT,
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": _TEXT,
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}, {"type": "null"}]},
    },
}
_TENSOR: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape", "data"],
    "properties": {
        "name": {"const": "text"},
        "datatype": {"const": "BYTES"},
        "shape": {"type": "array", "items": _WHOLE},
        "data": {"type": "array"},
    },
}
_BODIES: dict[str, Schema] = {
    "/v1/classify": _body(["input"], model=_TEXT, input=_INPUT, scores=_FLAG, on_long=_ON_LONG),
    "/v1/embeddings": _body(
        ["input"],
        model=_TEXT,
        input=_INPUT,
        encoding_format={"enum": ["float", "base64"]},
        dimensions=_WHOLE,
        on_long=_ON_LONG,
        user=_TEXT,
    ),
    "/v1/chat/completions": _body(
        ["messages"],
        **_SAMPLING,
        messages={"type": "array", "items": _MESSAGE, "minItems": 1},
        max_completion_tokens=_WHOLE,
        logprobs=_FLAG,
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        response_format=_OBJECT,
        tools={"type": "array", "items": _OBJECT},
        tool_choice={"enum": ["auto", "none"]},
        parallel_tool_calls={"const": True},
    ),
    "/v1/completions": _body(
        ["prompt"],
        **_SAMPLING,
        prompt=_TEXTS,
        logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        echo={"const": False},
        best_of={"const": 1},
        suffix={"const": ""},
    ),
    "/v2/models/{name}/infer": _body(
        ["inputs"],
        id=_TEXT,
        inputs={"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        outputs={"type": "array", "items": _OBJECT},
        parameters=_OBJECT,
    ),
    "/v1/admin/reload": _body([], model=_TEXT),
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": _TEXT,
            },
        }
    },
}
_REFUSALS = ("400", "401", "403", "404", "408", "409", "413", "429", "431", "501", "503", "504")


@cache
def document() -> Schema:
    """OpenAPI 3.1."""
    from edgelm.runtime.serve.routes import table

    paths: dict[str, Schema] = {}
    for path, method, scope, handler in table():
        kind = "text/plain" if path == "/metrics" else "application/json"
        answers: Schema = {"200": {"description": "The answer.", "content": {kind: {}}}}
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for code in _REFUSALS:
            answers[code] = {"description": "Refused.", "content": error}
        operation: Schema = {
            "operationId": f"{handler.__module__.rpartition('.')[2]}_{handler.__name__}",
            "summary": (handler.__doc__ or "").partition("\n")[0],
            "responses": answers,
            "security": [] if path in LIVE else [{"key": [scope] if scope else []}],
        }
        if "{name}" in path:
            operation["parameters"] = [
                {"name": "name", "in": "path", "required": True, "schema": _TEXT}
            ]
        if path in _BODIES:
            content = {"application/json": {"schema": _BODIES[path]}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgelm", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
