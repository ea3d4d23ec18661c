"""The lane of a classifier or embedder: what waits goes to the worker in batches.

One batch is in the engine and the next one in the pipe behind it; what comes in the meantime makes
the batch after that. So a batch is as large as the load asks for, and nobody waits for company.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.manifest import Manifest
from edgelm.runtime.serve.frames import Header
from edgelm.runtime.serve.lane import Lane, Request
from edgelm.runtime.serve.process import WorkerProcess
from edgelm.runtime.serve.refusals import answer_error

BATCHES_AHEAD = 2  # one in the engine, one behind it
MAX_TEXTS = 1024  # of a batch


@dataclass(frozen=True)
class TextAnswer:
    """What a worker said of a request's n texts."""

    manifest: Manifest  # of the version that answered
    n_texts: int
    n_tokens: int
    truncated: list[int]  # which of the texts
    answers: list[dict[str, Any]]  # of a classifier, in `to_json`'s form
    vectors: bytes = b""  # of an embedder: (n, H) float32, little-endian


class TextRequest(Request):
    """Texts of one call."""

    __slots__ = ("future", "scores", "texts")

    def __init__(self, client: str, n_tokens: int, texts: list[Any], scores: bool = False) -> None:
        super().__init__(client, n_tokens)
        self.texts = texts
        self.scores = scores
        self.future: asyncio.Future[TextAnswer] = asyncio.get_running_loop().create_future()

    def fail(self, err: EdgelmError) -> None:
        if not self.future.done():
            self.future.set_exception(err)


class TextLane(Lane[TextRequest]):
    """Whole texts in, whole answers out."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._batches: dict[int, list[TextRequest]] = {}  # by the number of their first request

    def pump(self) -> None:
        while self.worker is not None and len(self._batches) < BATCHES_AHEAD:
            batch = self._take_batch()
            if not batch:
                return
            for request in batch:
                self.begin(request)
            self._figures.batch_texts.observe(sum(len(r.texts) for r in batch), self.name)
            self._send(batch)

    def _send(self, batch: list[TextRequest]) -> None:
        self._batches[batch[0].id] = batch
        texts = [text for request in batch for text in request.texts]
        scores = any(request.scores for request in batch)
        worker = batch[0].worker
        assert worker is not None
        worker.send({"id": batch[0].id, "texts": texts, "scores": scores})

    def _take_batch(self) -> list[TextRequest]:
        batch: list[TextRequest] = []
        n_tokens = n_texts = 0
        while n_tokens < self._serve.batch_tokens and n_texts < MAX_TEXTS:
            request = self.queue.take()
            if request is None:
                break
            batch.append(request)
            n_tokens += request.n_tokens
            n_texts += len(request.texts)
        return batch

    def on_message(self, worker: WorkerProcess, header: Header, blob: bytes) -> None:
        batch = self._batches.pop(header["id"])
        if header["op"] == "error" and len(batch) > 1:
            for request in batch:  # so that one's text is no one else's error
                self._send([request])
        elif header["op"] == "error":
            for request in batch:
                request.fail(answer_error(header["error"]))
                self.end(request)
        else:
            self._share(batch, header, blob)
        self.pump()

    def _share(self, batch: list[TextRequest], header: Header, blob: bytes) -> None:
        """Give each request its texts' part of the answer."""
        answers, tokens, cut = header.get("answers"), header["tokens"], set(header["truncated"])
        width = len(blob) // len(tokens)
        self._figures.tokens.add(sum(tokens), self.name, "prompt")
        start = 0
        for request in batch:
            end = start + len(request.texts)
            n_tokens = sum(tokens[start:end])
            if not request.future.done():
                own = [i - start for i in range(start, end) if i in cut] if cut else []
                rows = answers[start:end] if answers is not None else []
                if not request.scores:  # another of the batch asked for them
                    rows = [{k: v for k, v in row.items() if k != "scores"} for row in rows]
                vectors = blob[start * width : end * width]
                assert request.manifest is not None
                request.future.set_result(
                    TextAnswer(request.manifest, end - start, n_tokens, own, rows, vectors)
                )
            self.end(request, n_tokens)
            start = end

    def on_lost(self) -> None:
        self._batches = {
            number: batch for number, batch in self._batches.items() if self.find(number)
        }
