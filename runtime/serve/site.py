"""What the routes answer from: the models, keys and figures of one server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgelm.runtime.errors import RequestRefused
from edgelm.runtime.serve import refusals
from edgelm.runtime.serve.chat_lane import ChatLane
from edgelm.runtime.serve.config import ServeConfig
from edgelm.runtime.serve.figures import Figures
from edgelm.runtime.serve.http import Call
from edgelm.runtime.serve.keys import Keys
from edgelm.runtime.serve.lane import Lane
from edgelm.runtime.serve.log import RequestLog
from edgelm.runtime.serve.text_lane import TextLane


@dataclass
class Site:
    """What the routes answer from."""

    config: ServeConfig
    keys: Keys | None  # None answers everyone
    lanes: dict[str, Lane[Any]]
    figures: Figures
    requests: RequestLog
    draining: bool = False

    def lane(self, name: object, call: Call) -> Lane[Any]:
        """The model of that name; the only one where none is named."""
        if name is None and len(self.lanes) == 1:
            name = next(iter(self.lanes))
        lane = self.lanes.get(name) if isinstance(name, str) else None
        if lane is None:
            raise refusals.unknown_model(name, list(self.lanes))
        call.detail["model"] = lane.name
        return lane

    def text_lane(self, name: object, call: Call, kind: str) -> TextLane:
        """A model of whole texts and of that task."""
        lane = self.lane(name, call)
        if not isinstance(lane, TextLane) or lane.manifest.task.kind != kind:
            raise self._other_task(lane)
        return lane

    def chat_lane(self, name: object, call: Call) -> ChatLane:
        """A model that generates."""
        lane = self.lane(name, call)
        if not isinstance(lane, ChatLane):
            raise self._other_task(lane)
        return lane

    def _other_task(self, lane: Lane[Any]) -> RequestRefused:
        said = f"the task of the model {lane.name!r} is {lane.manifest.task.kind}"
        return refusals.bad_request(said, "model")
