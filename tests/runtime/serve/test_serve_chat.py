"""Chat and completions by OpenAI's own client, beside predict in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import Served

import edgelm
from edgelm.runtime.chat_model import ChatModel

MESSAGES: list[Any] = [{"role": "user", "content": "where is my parcel"}]
MANY = [f"please cancel order {i} of my parcels" for i in range(8)]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(talker: Path) -> Iterator[ChatModel]:
    with edgelm.load(talker, variant="gguf-f32", threads=1) as found:
        assert isinstance(found, ChatModel)
        yield found


def test_a_chat_is_predict(client: openai.OpenAI, model: ChatModel) -> None:
    expected = model.predict(MESSAGES, max_tokens=12, seed=0)
    answer = client.chat.completions.create(model="talker", messages=MESSAGES, max_tokens=12)
    (choice,) = answer.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.object == "chat.completion" and answer.model == "talker"


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, model: ChatModel) -> None:
    expected = model.predict(MESSAGES, max_tokens=12, seed=0)
    chunks = list(
        client.chat.completions.create(
            model="talker",
            messages=MESSAGES,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, usage = chunks
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == expected.text
    assert pieces[0].choices[0].delta.role == "assistant" and len(pieces) > 3
    assert [c.choices[0].finish_reason for c in pieces][-1] == "length"
    assert usage.choices == [] and usage.usage is not None
    assert usage.usage.completion_tokens == 12
    assert len({c.id for c in chunks}) == 1


def test_texts_are_continued(client: openai.OpenAI, model: ChatModel) -> None:
    expected = [model.predict(text, max_tokens=6, raw=True, seed=0) for text in MANY[:3]]
    answer = client.completions.create(model="talker", prompt=MANY[:3], max_tokens=6)
    assert [c.text for c in answer.choices] == [e.text for e in expected]
    assert [c.index for c in answer.choices] == [0, 1, 2]
    streamed = client.completions.create(model="talker", prompt=MANY[0], max_tokens=6, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == expected[0].text


def test_answers_side_by_side_do_not_mix(client: openai.OpenAI, model: ChatModel) -> None:
    expected = {text: model.predict(text, max_tokens=16, seed=0).text for text in MANY}
    found: dict[str, str | None] = {}

    def ask(text: str) -> None:
        messages: list[Any] = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model="talker", messages=messages, max_tokens=16)
        found[text] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(text,)) for text in MANY]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_what_is_held_is_not_read_again(client: openai.OpenAI) -> None:
    talk: list[Any] = [{"role": "user", "content": "the refund of my order is late " * 3}]
    first = client.chat.completions.create(model="talker", messages=talk, max_tokens=4)
    talk += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and now"},
    ]
    second = client.chat.completions.create(model="talker", messages=talk, max_tokens=4)
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 16


def test_logprobs(client: openai.OpenAI, model: ChatModel) -> None:
    expected = model.predict(MESSAGES, max_tokens=4, logprobs=2, seed=0)
    answer = client.chat.completions.create(
        model="talker", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None and expected.logprobs is not None
    found = answer.choices[0].logprobs.content or []
    assert [t.token for t in found] == [t.token for t in expected.logprobs]
    assert [t.logprob for t in found] == pytest.approx(
        [t.logprob for t in expected.logprobs], abs=1e-3
    )
    assert all(len(t.top_logprobs) == 2 for t in found)
    old = client.completions.create(model="talker", prompt="hi", max_tokens=3, logprobs=1)
    assert old.choices[0].logprobs is not None
    assert len(old.choices[0].logprobs.tokens or []) == 3


def test_sampling_seed_and_stop(client: openai.OpenAI, model: ChatModel) -> None:
    def ask(**options: Any) -> openai.types.chat.chat_completion.Choice:
        answer = client.chat.completions.create(
            model="talker", messages=MESSAGES, max_tokens=12, **options
        )
        return answer.choices[0]

    drawn = [ask(temperature=1, seed=seed).message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    text = ask().message.content or ""
    stop = text[len(text) // 2 :][:3]
    stopped = ask(stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(stop)]


def test_json_schema(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["card lost", "parcel late"]}  # random models fill objects with spaces
    answer = client.chat.completions.create(
        model="talker",
        messages=MESSAGES,
        max_tokens=40,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    )
    assert json.loads(answer.choices[0].message.content or "") in schema["enum"]
    assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="json_schema"):
        client.chat.completions.create(
            model="talker",
            messages=MESSAGES,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            },
        )


def test_parts_and_tools_reach_the_template(client: openai.OpenAI) -> None:
    content = [{"type": "text", "text": text} for text in ("where is my ", "parcel")]
    parts: list[Any] = [{"role": "user", "content": content}]
    plain, split = (
        client.chat.completions.create(model="talker", messages=m, max_tokens=5)
        for m in (MESSAGES, parts)
    )
    assert plain.choices[0].message.content == split.choices[0].message.content
    tool: Any = {"type": "function", "function": {"name": "find", "parameters": {}}}
    told = client.chat.completions.create(
        model="talker", messages=MESSAGES, max_tokens=5, tools=[tool], tool_choice="none"
    )
    assert told.usage is not None and plain.usage is not None
    assert told.usage.prompt_tokens == plain.usage.prompt_tokens
    assert client.chat.completions.create(
        model="talker", messages=MESSAGES, max_tokens=5, tools=[tool]
    ).choices


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "no"}, openai.NotFoundError),
        ({"model": "classifier"}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"messages": [{"content": "hi"}]}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, openai.BadRequestError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"temperature": "hot"}, openai.BadRequestError),
        ({"top_p": 0}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"max_tokens": 100_000}, openai.BadRequestError),
        ({"n": 2}, openai.BadRequestError),
        ({"presence_penalty": 1}, openai.BadRequestError),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError),
        ({"stop": [""]}, openai.BadRequestError),
        ({"stop": {"a": 1}}, openai.BadRequestError),
        ({"seed": -1}, openai.BadRequestError),
        ({"top_logprobs": 2}, openai.BadRequestError),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError),
        ({"tools": [1]}, openai.BadRequestError),
        ({"tool_choice": "required"}, openai.BadRequestError),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError),
        ({"extra_body": {"unheard_of": 1}}, openai.BadRequestError),
        ({"extra_body": {"grammar": 5}}, openai.BadRequestError),
        ({"extra_body": {"choices": "yes"}}, openai.BadRequestError),
        ({"extra_body": {"regex": "("}}, openai.BadRequestError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_chat_is_refused(
    client: openai.OpenAI, change: dict[str, Any], error: type[openai.APIStatusError], stream: bool
) -> None:
    if stream and "stream_options" in change:
        pytest.skip("which is right for a stream")
    asked: dict[str, Any] = {"model": "talker", "messages": MESSAGES, "max_tokens": 2, **change}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**asked, stream=stream)
    assert isinstance(caught.value.body, dict) and caught.value.body["message"]


def test_models(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list().data}
    assert set(found) == {"classifier", "embedder", "talker"}
    assert client.models.retrieve("talker").id == "talker"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no")


def test_generation_by_the_open_inference_protocol(http: httpx.Client, model: ChatModel) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": MANY[:2]}
    body = {"inputs": [tensor], "parameters": {"max_tokens": 5}}
    (output,) = http.post("/v2/models/talker/infer", json=body).json()["outputs"]
    assert output["data"] == [model.predict(t, max_tokens=5, seed=0).text for t in MANY[:2]]
