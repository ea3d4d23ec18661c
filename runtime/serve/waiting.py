"""Requests that wait for a worker: bounded in tokens and number, fair between clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

CHARGE_TOKENS = 512  # that a client may take before it is the next one's turn
BYTES_A_TOKEN = 3  # of UTF-8, about: English has more, Chinese as many


def n_tokens_about(n_bytes: int) -> int:
    """What a text of so many bytes takes, without a tokenizer: rather more than less."""
    return n_bytes // BYTES_A_TOKEN + 2


class Waiting:
    """A request that waits."""

    __slots__ = ("client", "dropped", "n_tokens")

    def __init__(self, client: str, n_tokens: int) -> None:
        self.client = client
        self.n_tokens = n_tokens
        self.dropped = False  # its client left, or its time is over


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """First in, first out for each client; clients take turns, each with as many tokens."""

    def __init__(self, max_tokens: int, max_requests: int) -> None:
        self._max_tokens, self._max_requests = max_tokens, max_requests
        self._clients: OrderedDict[str, deque[W]] = OrderedDict()
        self._taken = 0  # tokens of the client whose turn it is
        self.n_tokens = 0
        self.n_requests = 0

    def put(self, waiting: W) -> bool:
        """Whether there was room. An empty queue has room for one of any size."""
        full = self.n_tokens + waiting.n_tokens > self._max_tokens and self.n_requests > 0
        if full or self.n_requests >= self._max_requests:
            return False
        self._clients.setdefault(waiting.client, deque()).append(waiting)
        self.n_tokens += waiting.n_tokens
        self.n_requests += 1
        return True

    def drop(self, waiting: W) -> None:
        """Take one out of its turn; its room is free at once. Not for one that was taken."""
        if waiting.dropped:
            return
        waiting.dropped = True
        line = self._clients[waiting.client]
        line.remove(waiting)
        if not line:
            if next(iter(self._clients)) == waiting.client:
                self._taken = 0
            del self._clients[waiting.client]
        self._leave(waiting)

    def take(self) -> W | None:
        """The next one, None where nobody waits."""
        while self._clients:
            client, line = next(iter(self._clients.items()))
            waiting = line.popleft()
            if not line:
                del self._clients[client]
                self._taken = 0
            self._taken += waiting.n_tokens
            if line and self._taken >= CHARGE_TOKENS:
                self._clients.move_to_end(client)
                self._taken = 0
            self._leave(waiting)
            return waiting
        return None

    def _leave(self, waiting: W) -> None:
        self.n_tokens -= waiting.n_tokens
        self.n_requests -= 1
