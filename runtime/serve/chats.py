"""A worker's loop for generation: answers join and leave between the engine's steps."""

from __future__ import annotations

import queue
import threading
from dataclasses import asdict
from typing import Any

from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.generate.answer import Answer, Step
from edgelm.runtime.generate.slots import Slots
from edgelm.runtime.serve.frames import Channel, error_header, read_frame

Messages = queue.SimpleQueue["dict[str, Any] | None"]


def serve_chats(model: ChatModel, channel: Channel) -> None:
    """Until the pipe ends. Messages: {op: answer, id, prompt, options}, {op: cancel, id}."""
    messages: Messages = queue.SimpleQueue()

    def read() -> None:
        while (found := read_frame(channel.asked)) is not None:
            messages.put(found[0])
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    _Loop(model, channel, messages).run()


class _Loop:
    def __init__(self, model: ChatModel, channel: Channel, messages: Messages) -> None:
        self._model, self._channel, self._messages = model, channel, messages
        self._slots = Slots(model.decoder, keeps=True)
        self._ids: dict[Answer, int] = {}

    def run(self) -> None:
        while self._take_messages():
            pieces: list[dict[str, Any]] = []
            for answer, outcome in self._slots.step():
                pieces += self._told(answer, outcome)
            if pieces:
                self._channel.say({"op": "pieces", "pieces": pieces})

    def _take_messages(self) -> bool:
        """Act on what came in; waits where there is nothing else to do. False: no more come."""
        while len(self._slots) == 0 or not self._messages.empty():
            message = self._messages.get()
            if message is None:
                return False
            if message["op"] == "cancel":
                self._cancel(message["id"])
            else:
                self._begin(message)
        return True

    def _begin(self, message: dict[str, Any]) -> None:
        try:
            answer = self._model.begin(message["prompt"], **message["options"])
        except EdgelmError as err:
            self._channel.say({"op": "pieces", "pieces": [_failed(message["id"], err)]})
            return
        self._ids[answer] = message["id"]
        self._slots.join(answer)

    def _cancel(self, wanted: int) -> None:
        for answer, number in self._ids.items():
            if number == wanted:
                self._slots.leave(answer)
                del self._ids[answer]
                self._channel.say({"op": "pieces", "pieces": [{"id": wanted, "end": "cancelled"}]})
                return

    def _told(self, answer: Answer, outcome: list[Step] | EdgelmError) -> list[dict[str, Any]]:
        number = self._ids[answer]
        if isinstance(outcome, EdgelmError):
            del self._ids[answer]
            return [_failed(number, outcome)]
        pieces: list[dict[str, Any]] = []
        for i, step in enumerate(outcome):
            is_last = answer.finish_reason is not None and i == len(outcome) - 1
            piece = self._model.piece(answer, step, is_last)
            if not (piece.text or is_last or piece.logprobs):
                continue
            told: dict[str, Any] = {"id": number, "text": piece.text}
            if piece.logprobs is not None:
                told["logprobs"] = [asdict(score) for score in piece.logprobs]
            if piece.usage is not None:
                told |= {"end": piece.finish_reason, "usage": asdict(piece.usage)}
            pieces.append(told)
        if answer.finish_reason is not None:
            del self._ids[answer]
        return pieces


def _failed(number: int, err: EdgelmError) -> dict[str, Any]:
    return {"id": number, "end": "error", "error": error_header(err)}
