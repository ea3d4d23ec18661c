"""A worker's loop for classifiers and embedders: a batch of texts in, their answers out."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.predictions import answers, normalize, to_json
from edgelm.runtime.serve.frames import Channel, error_header, read_frame
from edgelm.runtime.text_model import TextModel


def serve_texts(model: TextModel, channel: Channel) -> None:
    """Until the pipe ends. A message: {id, texts, scores}."""
    while (found := read_frame(channel.asked)) is not None:
        asked, _ = found
        try:
            header, blob = _answer(model, asked)
        except EdgelmError as err:
            header, blob = {"op": "error", "error": error_header(err)}, b""
        channel.say({"id": asked["id"], **header}, blob)


def _answer(model: TextModel, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Vectors are float32 rows behind the header; labels stand in it."""
    task = model.task
    texts = [tuple(t) for t in asked["texts"]] if task.pair else asked["texts"]
    found = model.outputs(texts)
    header = {
        "op": "texts",
        "tokens": found.n_tokens.tolist(),
        "truncated": [i for i, cut in enumerate(found.truncated) if cut],
    }
    if task.kind == "feature-extraction":
        vectors = normalize(found.values) if task.normalize else found.values
        return header, np.ascontiguousarray(vectors, "<f4").tobytes()
    rows = answers(task, found.values, found.truncated, all_scores=asked["scores"])
    header["answers"] = [to_json(row) for row in rows]
    return header, b""
