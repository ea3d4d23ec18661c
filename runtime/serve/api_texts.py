"""/v1/classify and /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

from edgelm.runtime.serve import refusals, requests
from edgelm.runtime.serve.http import Body, Call, Watch
from edgelm.runtime.serve.site import Site
from edgelm.runtime.serve.text_lane import TextAnswer, TextLane, TextRequest

CLASSIFY = frozenset({"model", "input", "scores", "on_long"})
EMBED = frozenset({"model", "input", "encoding_format", "dimensions", "on_long", "user"})


async def classify(site: Site, call: Call) -> None:
    """Labels and scores of a text, or of a list of texts."""
    body = await call.json()
    requests.check_keys(body, CLASSIFY)
    lane = site.text_lane(body.get("model"), call, "text-classification")
    found = await ask(site, call, lane, body, scores=requests.flag(body, "scores"))
    data = [{"index": i, **answer} for i, answer in enumerate(found.answers)]
    await call.answer(
        {
            "object": "list",
            "model": lane.name,
            "data": data,
            "usage": {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens},
        }
    )


async def embeddings(site: Site, call: Call) -> None:
    """Vectors of a text, or of a list of texts."""
    body = await call.json()
    requests.check_keys(body, EMBED)
    lane = site.text_lane(body.get("model"), call, "feature-extraction")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise refusals.bad_request("encoding_format: float or base64", "encoding_format")
    found = await ask(site, call, lane, body)
    rows = vectors(found)
    asked = body.get("dimensions")
    if asked is not None and asked != len(rows[0]) // 4:
        said = f"dimensions: this model has {len(rows[0]) // 4}"
        raise refusals.bad_request(said, "dimensions")
    data: list[Any] = [
        {"object": "embedding", "index": i, "embedding": floats(row) if form == "float" else
         base64.b64encode(row).decode()}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    await call.answer(
        {
            "object": "list",
            "model": lane.name,
            "data": data,
            "usage": {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens},
        }
    )


async def ask(
    site: Site, call: Call, lane: TextLane, body: Body, *, key: str = "input", scores: bool = False
) -> TextAnswer:
    """The worker's answer to the texts under `key`. Raises RequestRefused, EdgelmError."""
    on_long = body.get("on_long") or "truncate"
    if on_long not in ("truncate", "error"):
        raise refusals.bad_request("on_long: truncate or error", "on_long")
    manifest = lane.manifest
    found, n_tokens = requests.texts(
        body.get(key), key, pair=manifest.task.pair, max_inputs=site.config.max_inputs
    )
    n_tokens = min(n_tokens, len(found) * manifest.text.max_tokens)
    request = TextRequest(call.client, n_tokens, found, scores)
    with Watch(call, lane, request):
        answer = await request.future
    call.detail["tokens"] = answer.n_tokens
    if on_long == "error" and answer.truncated:
        said = f"{key}[{answer.truncated[0]}]: longer than {manifest.text.max_tokens} tokens"
        raise refusals.bad_request(said, key)
    return answer


def vectors(answer: TextAnswer) -> list[bytes]:
    """Each text's vector, float32."""
    n = answer.n_texts
    width = len(answer.vectors) // n
    return [answer.vectors[i * width : (i + 1) * width] for i in range(n)]


def floats(row: bytes) -> list[float]:
    """A vector's numbers."""
    return list(struct.unpack(f"<{len(row) // 4}f", row))
