"""/v1/chat/completions and /v1/completions, as OpenAI's clients speak them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any

from edgelm.runtime.errors import UsageError
from edgelm.runtime.generate.options import MAX_TOKENS, GenerateOptions
from edgelm.runtime.generate.stops import are_texts
from edgelm.runtime.serve import refusals, requests
from edgelm.runtime.serve.chat_lane import ChatLane, ChatRequest, Piece
from edgelm.runtime.serve.http import Body, Call, Watch
from edgelm.runtime.serve.site import Site
from edgelm.runtime.serve.waiting import n_tokens_about

SAMPLING = ("temperature", "top_p", "seed", "stop", "top_k", "min_p", "repetition_penalty")
FORMS = ("grammar", "regex", "choices")
# What changes nothing here; and what would change the answer, so only its default is taken.
UNUSED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "parallel_tool_calls": (True,),
}
SHARED = frozenset(
    {"model", "max_tokens", "stream", "stream_options", "logprobs", *SAMPLING, *FORMS, *UNUSED}
)
CHAT = SHARED | {
    "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice",
    "n", "frequency_penalty", "presence_penalty", "logit_bias", "parallel_tool_calls",
}  # fmt: skip
COMPLETE = SHARED | {
    "prompt", "n", "frequency_penalty", "presence_penalty", "logit_bias", "echo", "best_of",
    "suffix",
}  # fmt: skip
MAX_TOP_LOGPROBS = 20


async def chat_completions(site: Site, call: Call) -> None:
    """The next message of a conversation."""
    body = await call.json()
    requests.check_keys(body, CHAT)
    lane = site.chat_lane(body.get("model"), call)
    messages, n_bytes = _messages(body.get("messages"))
    options = _options(body, body.get("max_completion_tokens"))
    options |= _response_format(body.get("response_format"), options)
    if requests.flag(body, "logprobs"):
        options["logprobs"] = _top_logprobs(body.get("top_logprobs"))
    elif body.get("top_logprobs") is not None:
        raise refusals.bad_request("top_logprobs: it needs logprobs: true", "top_logprobs")
    tools = _tools(body)
    if tools:
        options["tools"] = tools
        n_bytes += len(str(tools))
    request = _request(call, lane, messages, n_bytes, options)
    await _answer(_Chat(site, call, lane, body), [request])


async def completions(site: Site, call: Call) -> None:
    """Texts that are continued as they stand."""
    body = await call.json()
    requests.check_keys(body, COMPLETE)
    lane = site.chat_lane(body.get("model"), call)
    given = body.get("prompt")
    prompts = given if isinstance(given, list) else [given]
    if not 1 <= len(prompts) <= site.config.max_inputs:
        raise refusals.bad_request("prompt: a text or a list of texts is needed", "prompt")
    options = {**_options(body, None), "raw": True}
    if body.get("logprobs") is not None:
        options["logprobs"] = _top_logprobs(body["logprobs"], "logprobs")
    if requests.flag(body, "stream") and len(prompts) > 1:
        raise refusals.bad_request("stream: one prompt at a time", "stream")
    asked = [
        _request(call, lane, p, requests.n_bytes(p, f"prompt[{i}]", "prompt"), options)
        for i, p in enumerate(prompts)
    ]
    await _answer(_Completion(site, call, lane, body), asked)


class _Form(ABC):
    """How answers are told: the two routes have forms of their own."""

    whole = ""
    chunk = ""
    prefix = ""

    def __init__(self, site: Site, call: Call, lane: ChatLane, body: Body) -> None:
        self.site, self.call, self.lane = site, call, lane
        self.streams = requests.flag(body, "stream")
        options = body.get("stream_options")
        if options is not None and not self.streams:
            raise refusals.bad_request("stream_options: it needs stream: true", "stream_options")
        wanted = requests.mapping(options or {}, "stream_options")
        self.tells_usage = wanted.get("include_usage") is True
        self._head = {
            "id": self.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": lane.name,
        }

    def head(self, kind: str, choices: list[Any], usage: Any = None) -> dict[str, Any]:
        """An answer, or a chunk of one."""
        found = {**self._head, "object": kind, "choices": choices}
        if usage is not None:
            found["usage"] = usage
        return found

    @abstractmethod
    def choice(self, index: int, text: str, reason: str, scores: list[Any] | None) -> Any:
        """A whole answer."""

    @abstractmethod
    def part(self, text: str, reason: str | None, scores: list[Any] | None, first: bool) -> Any:
        """A piece of one."""


class _Chat(_Form):
    whole, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def choice(self, index: int, text: str, reason: str, scores: list[Any] | None) -> Any:
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = None if scores is None else self._scores(scores)
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reason,
        }

    def part(self, text: str, reason: str | None, scores: list[Any] | None, first: bool) -> Any:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if text or first:
            delta["content"] = text
        logprobs = None if scores is None else self._scores(scores)
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _scores(self, scores: list[Any]) -> dict[str, Any]:
        def one(token: str, logprob: float) -> dict[str, Any]:
            return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

        return {
            "content": [
                {
                    **one(score["token"], score["logprob"]),
                    "top_logprobs": [one(*other) for other in score["alternatives"]],
                }
                for score in scores
            ],
            "refusal": None,
        }


class _Completion(_Form):
    whole = chunk = "text_completion"
    prefix = "cmpl-"

    def choice(self, index: int, text: str, reason: str, scores: list[Any] | None) -> Any:
        logprobs = None if scores is None else self._scores(scores)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def part(self, text: str, reason: str | None, scores: list[Any] | None, first: bool) -> Any:
        logprobs = None if scores is None else self._scores(scores)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _scores(self, scores: list[Any]) -> dict[str, Any]:
        offsets, at = [], 0
        for score in scores:
            offsets.append(at)
            at += len(score["token"])
        return {
            "tokens": [score["token"] for score in scores],
            "token_logprobs": [score["logprob"] for score in scores],
            "top_logprobs": [dict(score["alternatives"]) for score in scores],
            "text_offset": offsets,
        }


async def _answer(form: _Form, asked: list[ChatRequest]) -> None:
    if form.streams:
        async with contextlib.aclosing(_events(form, asked[0])) as events:
            await form.call.stream(events)
        return
    answers = await _all(form.call, form.lane, asked)
    choices = [
        form.choice(i, text, last["end"], scores) for i, (text, last, scores) in enumerate(answers)
    ]
    usage = _usage([last["usage"] for _, last, _ in answers])
    form.call.detail["tokens"] = usage["total_tokens"]
    await form.call.answer(form.head(form.whole, choices, usage))


async def complete(
    call: Call, lane: ChatLane, texts: list[Any], options: dict[str, Any]
) -> list[str]:
    """The texts' answers alone. Raises RequestRefused, EdgelmError."""
    sizes = [requests.n_bytes(text, f"text[{i}]", "inputs") for i, text in enumerate(texts)]
    wanted = _options(options, None)
    asked = [_request(call, lane, t, n, wanted) for t, n in zip(texts, sizes, strict=True)]
    return [text for text, _, _ in await _all(call, lane, asked)]


Whole = tuple[str, Piece, "list[Any] | None"]


async def _all(call: Call, lane: ChatLane, asked: list[ChatRequest]) -> list[Whole]:
    """All are begun before the first is awaited; one that fails takes the others with it."""
    if len(asked) == 1:
        return [await _whole(call, lane, asked[0])]
    found = [asyncio.ensure_future(_whole(call, lane, request)) for request in asked]
    try:
        return await asyncio.gather(*found)
    finally:
        for one in found:
            one.cancel()


async def _whole(call: Call, lane: ChatLane, request: ChatRequest) -> Whole:
    """An answer's text, its last piece, and its log-probabilities where asked."""
    texts: list[str] = []
    scores: list[Any] | None = None if request.options.get("logprobs") is None else []
    last: Piece = {}
    async with contextlib.aclosing(pieces(call, lane, request)) as found:
        async for last in found:
            texts.append(last["text"])
            if scores is not None:
                scores += last.get("logprobs", ())
    return "".join(texts), last, scores


async def _events(form: _Form, request: ChatRequest) -> AsyncGenerator[Any, None]:
    """An answer's chunks."""
    first = True
    usage = None
    async with contextlib.aclosing(pieces(form.call, form.lane, request)) as found:
        async for piece in found:
            reason = piece.get("end")
            part = form.part(piece["text"], None, piece.get("logprobs"), first)
            first = False
            if piece["text"] or piece.get("logprobs") or reason is None:
                yield form.head(form.chunk, [part])
            if reason is not None:
                usage = _usage([piece["usage"]])
                form.call.detail["tokens"] = usage["total_tokens"]
                yield form.head(form.chunk, [form.part("", reason, None, False)])
    if form.tells_usage:
        yield form.head(form.chunk, [], usage)


async def pieces(call: Call, lane: ChatLane, request: ChatRequest) -> AsyncGenerator[Piece, None]:
    """The worker's pieces; leaving early ends the answer. Raises RequestRefused, EdgelmError."""
    with Watch(call, lane, request):
        piece = await request.piece()
        lane.note_first(request)
        yield piece
        while "end" not in piece:
            piece = await request.piece()
            yield piece


def _request(
    call: Call, lane: ChatLane, prompt: Any, n_bytes: int, options: dict[str, Any]
) -> ChatRequest:
    n_tokens = n_tokens_about(n_bytes) + (options.get("max_tokens") or MAX_TOKENS)
    n_tokens = min(n_tokens, lane.context_tokens)
    return ChatRequest(call.client, n_tokens, prompt, options)


def _options(body: Body, max_tokens: Any) -> dict[str, Any]:
    """What both routes take. Raises RequestRefused, UsageError."""
    for name, allowed in DEFAULTS.items():
        value = body.get(name)
        if value is not None and value not in allowed:
            raise refusals.bad_request(f"{name}: only {allowed[0]!r} is answered", name)
    found = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    max_tokens = body.get("max_tokens") if max_tokens is None else max_tokens
    if max_tokens is not None:
        found["max_tokens"] = max_tokens
    try:
        GenerateOptions.of(**found)
    except UsageError as err:
        raise refusals.bad_request(err.message, err.message.partition(":")[0]) from err
    return {**found, **_forms(body)}


def _forms(body: Body) -> dict[str, Any]:
    found = {name: body[name] for name in FORMS if body.get(name) is not None}
    for name, value in found.items():
        ok = are_texts(value) if name == "choices" else isinstance(value, str)
        if not ok:
            what = "a list of texts" if name == "choices" else "a text"
            raise refusals.bad_request(f"{name}: {what} is needed", name)
    return found


def _messages(value: Any) -> tuple[list[dict[str, Any]], int]:
    """Messages with texts as content, and about how many bytes they have."""
    if not isinstance(value, list) or not value:
        raise refusals.bad_request("messages: a list of messages is needed", "messages")
    found: list[dict[str, Any]] = []
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise refusals.bad_request(f"{where}: an object with a role is needed", "messages")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, f"{where}.content") for part in content)
        elif content is not None and not isinstance(content, str):
            raise refusals.bad_request(f"{where}.content: a text is needed", "messages")
        found.append({**message, "content": content})
    return found, sum(len(str(message)) for message in found)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise refusals.bad_request(f"{where}: only parts of type text are answered", "messages")
    if not isinstance(part.get("text"), str):
        raise refusals.bad_request(f"{where}: a text is needed", "messages")
    return part["text"]


def _response_format(value: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The constraint that it means."""
    if value is None:
        return {}
    kind = requests.mapping(value, "response_format").get("type")
    if kind == "text":
        return {}
    if any(name in options for name in FORMS):
        raise refusals.bad_request(
            "response_format: one constraint, not several", "response_format"
        )
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    if kind == "json_schema":
        stated = requests.mapping(value.get("json_schema"), "response_format.json_schema")
        schema = requests.mapping(stated.get("schema"), "response_format.json_schema.schema")
        return {"json_schema": schema}
    said = "response_format: its type is none of text, json_object, json_schema"
    raise refusals.bad_request(said, "response_format")


def _tools(body: Body) -> list[Any] | None:
    """Tools that the chat template shows; whether the model calls one is its own choice."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise refusals.bad_request("tool_choice: only auto and none are answered", "tool_choice")
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise refusals.bad_request("tools: a list of objects is needed", "tools")
    return None if choice == "none" else tools


def _top_logprobs(value: Any, name: str = "top_logprobs") -> int:
    value = 0 if value is None else value
    if type(value) is not int or not 0 <= value <= MAX_TOP_LOGPROBS:
        raise refusals.bad_request(f"{name}: 0 to {MAX_TOP_LOGPROBS} is needed", name)
    return value


def _usage(found: list[dict[str, int]]) -> dict[str, Any]:
    prompt = sum(usage["prompt_tokens"] for usage in found)
    answer = sum(usage["answer_tokens"] for usage in found)
    reused = sum(usage["reused_tokens"] for usage in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
