"""Open Inference Protocol v2: JSON tensors in, JSON tensors out.

The input tensor is `text` (BYTES, [N]; [N, 2] for pairs). Classifiers answer `label` and `score`,
and `scores` where it is asked for; embedders `embedding`; generation models `text`, with options of
generation as parameters of the request.
"""

from __future__ import annotations

import json
from typing import Any

from edgelm import __version__
from edgelm.runtime.serve import refusals, requests
from edgelm.runtime.serve.api_chat import complete
from edgelm.runtime.serve.api_texts import ask, floats, vectors
from edgelm.runtime.serve.api_watch import all_ready
from edgelm.runtime.serve.chat_lane import ChatLane
from edgelm.runtime.serve.http import Body, Call
from edgelm.runtime.serve.lane import Lane
from edgelm.runtime.serve.site import Site
from edgelm.runtime.serve.text_lane import TextAnswer, TextLane

INFER = frozenset({"id", "inputs", "outputs", "parameters"})
OPTIONS = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"}
)


async def live(site: Site, call: Call) -> None:
    """The web process answers."""
    await call.answer({"live": True})


async def ready(site: Site, call: Call) -> None:
    """Every model takes requests."""
    is_ready = all_ready(site)
    await call.answer({"ready": is_ready}, 200 if is_ready else 503)


async def server_metadata(site: Site, call: Call) -> None:
    """Name and version of the server."""
    await call.answer({"name": "edgelm", "version": __version__, "extensions": []})


async def model_ready(site: Site, call: Call) -> None:
    """Whether one model takes requests."""
    lane = site.lane(call.scope["path_params"]["name"], call)
    is_ready = lane.is_ready and not site.draining
    await call.answer({"name": lane.name, "ready": is_ready}, 200 if is_ready else 503)


async def model_metadata(site: Site, call: Call) -> None:
    """The model's tensors."""
    lane = site.lane(call.scope["path_params"]["name"], call)
    shape = [-1, 2] if lane.manifest.task.pair else [-1]
    await call.answer(
        {
            "name": lane.name,
            "versions": [lane.manifest.version],
            "platform": "edgelm",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": shape}],
            "outputs": _described(lane),
        }
    )


async def infer(site: Site, call: Call) -> None:
    """Answer the texts of the input tensor."""
    body = await call.json()
    requests.check_keys(body, INFER)
    lane = site.lane(call.scope["path_params"]["name"], call)
    texts = _texts(body, pair=lane.manifest.task.pair, max_inputs=site.config.max_inputs)
    asked = _asked_outputs(body, lane)
    version = lane.manifest.version
    if isinstance(lane, ChatLane):
        outputs = await _generated(call, lane, texts, body)
    else:
        assert isinstance(lane, TextLane)
        wants_scores = "scores" in asked
        answer = await ask(site, call, lane, {"text": texts}, key="text", scores=wants_scores)
        version, outputs = answer.manifest.version, _answered(answer, wants_scores=wants_scores)
    found: dict[str, Any] = {
        "model_name": lane.name,
        "model_version": version,
        "outputs": [o for o in outputs if not asked or o["name"] in asked],
    }
    if body.get("id") is not None:
        found["id"] = body["id"]
    await call.answer(found)


def _answered(found: TextAnswer, *, wants_scores: bool) -> list[Any]:
    task, n = found.manifest.task, found.n_texts
    if task.kind == "feature-extraction":
        rows = vectors(found)
        numbers = [x for row in rows for x in floats(row)]
        return [_tensor("embedding", "FP32", [n, len(rows[0]) // 4], numbers)]
    if task.problem == "multi_label":
        outputs = [
            _tensor("labels", "BYTES", [n], [json.dumps(a["labels"]) for a in found.answers])
        ]
    else:
        outputs = [
            _tensor("label", "BYTES", [n], [a["label"] for a in found.answers]),
            _tensor("score", "FP32", [n], [a["score"] for a in found.answers]),
        ]
    if wants_scores:
        numbers = [a["scores"][label] for a in found.answers for label in task.labels]
        outputs.append(_tensor("scores", "FP32", [n, len(task.labels)], numbers))
    return outputs


async def _generated(call: Call, lane: ChatLane, texts: list[Any], body: Body) -> list[Any]:
    options = dict(requests.mapping(body.get("parameters") or {}, "parameters"))
    requests.check_keys(options, OPTIONS)
    answers = await complete(call, lane, texts, options)
    return [_tensor("text", "BYTES", [len(texts)], answers)]


def _texts(body: Body, *, pair: bool, max_inputs: int) -> list[Any]:
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise refusals.bad_request("inputs: one tensor, named text, is needed", "inputs")
    tensor = inputs[0]
    if tensor.get("name") != "text" or tensor.get("datatype") != "BYTES":
        raise refusals.bad_request("inputs: a tensor named text of BYTES is needed", "inputs")
    data, shape = tensor.get("data"), tensor.get("shape")
    width = [2] if pair else []
    if not isinstance(data, list) or not data or not isinstance(shape, list):
        raise refusals.bad_request("inputs: data and shape are needed", "inputs")
    if len(data) > max_inputs * (2 if pair else 1):
        raise refusals.bad_request(f"inputs: {len(data)} are more than {max_inputs}", "inputs")
    if pair and all(isinstance(x, str) for x in data):
        data = [data[i : i + 2] for i in range(0, len(data), 2)]
    if shape != [len(data), *width]:
        raise refusals.bad_request(
            f"inputs: shape {str(shape)[:80]} is not that of the data, {[len(data), *width]}",
            "inputs",
        )
    return data


def _asked_outputs(body: Body, lane: Lane[Any]) -> set[str]:
    given = body.get("outputs")
    if given is None:
        return set()
    known = {output["name"] for output in _described(lane)}
    rows = given if isinstance(given, list) else [None]
    names = {row.get("name") if isinstance(row, dict) else None for row in rows}
    if not names <= known:
        raise refusals.bad_request(f"outputs: there are {', '.join(sorted(known))}", "outputs")
    return {str(name) for name in names}


def _described(lane: Lane[Any]) -> list[dict[str, Any]]:
    task = lane.manifest.task
    if task.kind == "text-generation":
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    if task.kind == "feature-extraction":
        return [{"name": "embedding", "datatype": "FP32", "shape": [-1, task.dimensions or -1]}]
    scores = {"name": "scores", "datatype": "FP32", "shape": [-1, len(task.labels)]}
    if task.problem == "multi_label":
        return [{"name": "labels", "datatype": "BYTES", "shape": [-1]}, scores]
    return [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        scores,
    ]


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
