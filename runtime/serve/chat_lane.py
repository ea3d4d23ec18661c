"""The lane of a generation model: answers go to the worker while it has room, pieces come back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.serve.frames import Header
from edgelm.runtime.serve.lane import Lane, Request
from edgelm.runtime.serve.process import WorkerProcess
from edgelm.runtime.serve.refusals import answer_error

WAITING_IN_WORKER = 1  # so that a place that falls free is taken in the next step

Piece = dict[str, Any]  # id, text, and where asked or at the end: logprobs, end, usage


class ChatRequest(Request):
    """One prompt; its pieces come as they are generated, the last one with `end`."""

    __slots__ = ("_pieces", "options", "prompt")

    def __init__(self, client: str, n_tokens: int, prompt: Any, options: dict[str, Any]) -> None:
        super().__init__(client, n_tokens)
        self.prompt = prompt
        self.options = options
        # the worker's pieces are at most its longest answer, so this needs no bound
        self._pieces: asyncio.Queue[Piece | EdgelmError] = asyncio.Queue()

    async def piece(self) -> Piece:
        """The next one. Raises EdgelmError where the answer failed."""
        found = await self._pieces.get()
        if isinstance(found, EdgelmError):
            raise found
        return found

    def push(self, piece: Piece) -> None:
        """The worker's next piece."""
        self._pieces.put_nowait(piece)

    def fail(self, err: EdgelmError) -> None:
        self._pieces.put_nowait(err)


class ChatLane(Lane[ChatRequest]):
    """Prompts in, pieces of answers out; answers begin and end independently."""

    @property
    def context_tokens(self) -> int:
        """Of prompt and answer together."""
        told = None if self.worker is None else self.worker.facts["context_tokens"]
        return told or self.config.context_tokens or self.manifest.text.max_tokens

    def note_first(self, request: ChatRequest) -> None:
        """The first piece of an answer came."""
        self._figures.first_token.observe(time.monotonic() - request.arrived, self.name)

    def pump(self) -> None:
        while self.worker is not None:
            if self.n_answering >= self.config.sequences + WAITING_IN_WORKER:
                return
            request = self.queue.take()
            if request is None:
                return
            number = self.begin(request)
            self.worker.send(
                {"op": "answer", "id": number, "prompt": request.prompt, "options": request.options}
            )

    def on_message(self, worker: WorkerProcess, header: Header, blob: bytes) -> None:
        for piece in header["pieces"]:
            request = self.find(piece["id"])
            if request is None:
                continue
            self._note(request, piece)
            if piece.get("end") == "error":
                request.fail(answer_error(piece["error"]))
            elif not request.dropped:
                request.push(piece)
        self.pump()

    def _note(self, request: ChatRequest, piece: Piece) -> None:
        """The figures of a piece, and the end of its answer."""
        usage = piece.get("usage")
        if usage is not None:
            self._figures.tokens.add(usage["prompt_tokens"], self.name, "prompt")
            self._figures.tokens.add(usage["answer_tokens"], self.name, "answer")
        if "end" in piece:
            n_tokens = 0 if usage is None else usage["prompt_tokens"] + usage["answer_tokens"]
            self.end(request, n_tokens)

    def on_abandoned(self, request: ChatRequest) -> None:
        if request.worker is not None:
            request.worker.send({"op": "cancel", "id": request.id})
