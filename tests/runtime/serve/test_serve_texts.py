"""/v1/classify, /v1/embeddings and the Open Inference Protocol, beside predict in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving import Served

import edgelm
from edgelm.runtime.predictions import to_json

TEXTS = ["i lost my card", "我 的 卡 丢 了", "café déjà vu", "refund please " * 40]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_classify_is_predict(classifier: Path, http: httpx.Client) -> None:
    with edgelm.load(classifier, variant="onnx-fp32", threads=1) as model:
        expected = [to_json(p) for p in model.predict(TEXTS, all_scores=True)]
    body = {"model": "classifier", "input": TEXTS, "scores": True}
    found = http.post("/v1/classify", json=body).raise_for_status().json()
    assert [row.pop("index") for row in found["data"]] == [0, 1, 2, 3]
    for row, wanted in zip(found["data"], expected, strict=True):
        assert (row["label"], row.get("truncated")) == (wanted["label"], wanted.get("truncated"))
        assert row["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    single = http.post("/v1/classify", json={"model": "classifier", "input": TEXTS[0]}).json()
    assert single["data"][0]["label"] == expected[0]["label"]
    assert set(single["data"][0]) == {"index", "label", "score"}
    assert single["usage"]["prompt_tokens"] >= 4


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_predict(embedder: Path, client: openai.OpenAI, form: Any) -> None:
    with edgelm.load(embedder, variant="onnx-fp32", threads=1) as model:
        expected = np.stack([p.vector for p in model.predict(TEXTS)])
    if form == "float":
        answer = client.embeddings.create(model="embedder", input=TEXTS, encoding_format="float")
    else:
        answer = client.embeddings.create(model="embedder", input=TEXTS)  # the client decodes it
    found = np.array([row.embedding for row in answer.data], np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("classify", {"model": "no", "input": "hi"}, 404, "model_not_found", "model"),
        ("classify", {"input": "hi"}, 404, "model_not_found", "model"),
        ("classify", {"model": "embedder", "input": "hi"}, 400, "invalid_value", "model"),
        ("classify", {"model": "classifier"}, 400, "invalid_value", "input"),
        ("classify", {"model": "classifier", "input": []}, 400, "invalid_value", "input"),
        ("classify", {"model": "classifier", "input": ["a", 1]}, 400, "invalid_value", "input"),
        ("classify", {"model": "classifier", "input": ["a"] * 65}, 400, "invalid_value", "input"),
        ("classify", {"model": "classifier", "imput": "a"}, 400, "invalid_value", "imput"),
        ("embeddings", {"model": "embedder", "input": "a", "dimensions": 3}, 400,
         "invalid_value", "dimensions"),
        ("classify", {"model": "classifier", "input": "a " * 40_000}, 413, "request_too_large",
         None),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused(
    http: httpx.Client, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = http.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'{"input": NaN}', b"\xff\xfe", b"[" * 60_000, b'{"input":"\\ud800"}',
     b'{"model": "classifier", "input": ' + b"[" * 65 + b"]" * 65 + b"}",
     b'{"model": "classifier", "input": ' + b"9" * 40 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_of_texts_is_refused(http: httpx.Client, raw: bytes) -> None:
    answer = http.post("/v1/classify?x=1", content=raw)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] in ("invalid_value", "model_not_found")


def test_a_lone_surrogate_fails_alone(http: httpx.Client) -> None:
    raw = json.dumps({"model": "classifier", "input": "\ud800"}).encode()
    assert http.post("/v1/classify", content=raw).status_code == 400
    assert http.post("/v1/classify", json={"model": "classifier", "input": "a"}).is_success


def test_a_long_text_can_be_refused(http: httpx.Client) -> None:
    body = {"model": "classifier", "input": ["hi", "refund please " * 400], "on_long": "error"}
    answer = http.post("/v1/classify", json=body)
    assert answer.status_code == 400 and "input[1]" in answer.json()["error"]["message"]


def test_open_inference_protocol(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2").json()["name"] == "edgelm"
    about = http.get("/v2/models/classifier").json()
    assert [t["name"] for t in about["outputs"]] == ["label", "score", "scores"]
    assert http.get("/v2/models/classifier/ready").is_success
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2]}
    found = http.post("/v2/models/classifier/infer", json={"id": "7", "inputs": [tensor]}).json()
    assert found["id"] == "7" and found["model_name"] == "classifier"
    plain = http.post("/v1/classify", json={"model": "classifier", "input": TEXTS[:2]}).json()
    labels, scores = (output["data"] for output in found["outputs"])
    assert labels == [row["label"] for row in plain["data"]]
    assert scores == pytest.approx([row["score"] for row in plain["data"]], abs=1e-5)
    asked = {"inputs": [tensor], "outputs": [{"name": "scores"}]}
    (output,) = http.post("/v2/models/classifier/infer", json=asked).json()["outputs"]
    assert output["shape"] == [2, 3]
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)).sum(axis=1), 1, atol=1e-5)
    (vector,) = http.post("/v2/models/embedder/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert vector["name"] == "embedding" and vector["shape"][0] == 2
    assert len(vector["data"]) == 2 * vector["shape"][1]


@pytest.mark.parametrize(
    "change", [{"shape": [3]}, {"datatype": "FP32"}, {"name": "x"}, {"data": []}, {"data": [1, 2]}]
)
def test_wrong_tensors_are_refused(http: httpx.Client, change: dict[str, Any]) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2], **change}
    answer = http.post("/v2/models/classifier/infer", json={"inputs": [tensor]})
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["classifier", "talker"])
def test_infer_takes_as_many_texts_as_the_other_routes(http: httpx.Client, name: str) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [65], "data": [""] * 65}
    answer = http.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 400 and "more than 64" in answer.text
