"""Load from a process of its own: single-text requests over connections that stay open.

A question is {port, path, key, texts, clients} for a closed loop (each client asks when it has its
answer), and with {rate, duration_s} for an open one (requests begin when they are due, whether
others were answered or not).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from protocol import Options, answer_all, options, read_texts

MAX_CONNECTIONS = 400  # of an open loop; what is due while all are busy is not sent, and counted

Latencies = dict[int, list[float]]  # status -> seconds


class Connection:
    """One at a time, over HTTP/1.1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """The answer's status; its body is read."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"content-length:") + 15
        await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
        return int(head[9:12])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def requests(question: Options, texts: list[str]) -> list[bytes]:
    """Whole requests, made before the clock runs."""
    found: list[bytes] = []
    for text in texts:
        body = json.dumps({question["key"]: text}).encode()
        head = f"POST {question['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        found.append(head.encode() + body)
    return found


async def closed(question: Options, made: list[bytes]) -> dict[str, Any]:
    """All requests once, by so many clients."""
    waiting, latencies = iter(made), Latencies()

    async def client() -> None:
        connection = Connection(question["port"])
        for request in waiting:
            await timed(connection, request, latencies)
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(question["clients"])))
    return told(latencies, time.perf_counter() - started, 0)


async def opened(question: Options, made: list[bytes]) -> dict[str, Any]:
    """Requests at a rate, for some seconds."""
    free = [Connection(question["port"]) for _ in range(MAX_CONNECTIONS)]
    under_way: set[asyncio.Task[None]] = set()
    latencies, not_sent, n = Latencies(), 0, 0

    async def one(connection: Connection, request: bytes) -> None:
        await timed(connection, request, latencies)
        free.append(connection)

    started = time.perf_counter()
    while (now := time.perf_counter() - started) < question["duration_s"]:
        while n < now * question["rate"]:
            n += 1
            if not free:
                not_sent += 1
                continue
            task = asyncio.create_task(one(free.pop(), made[n % len(made)]))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.sleep(0.001)
    if under_way:
        await asyncio.wait(under_way)
    seconds = time.perf_counter() - started
    for connection in free:
        connection.close()
    return told(latencies, seconds, not_sent)


async def timed(connection: Connection, request: bytes, latencies: Latencies) -> None:
    started = time.perf_counter()
    status = await connection.ask(request)
    latencies.setdefault(status, []).append(time.perf_counter() - started)


def told(latencies: Latencies, seconds: float, not_sent: int) -> dict[str, Any]:
    def quantile(values: list[float], share: float) -> float:
        return sorted(values)[int(share * (len(values) - 1))]

    return {
        "seconds": seconds,
        "not_sent": not_sent,
        "n": {str(s): n for s, n in Counter({s: len(v) for s, v in latencies.items()}).items()},
        "p50_s": {str(s): quantile(v, 0.5) for s, v in latencies.items()},
        "p99_s": {str(s): quantile(v, 0.99) for s, v in latencies.items()},
    }


def main() -> None:
    texts = read_texts(options()["texts"])

    def work(question: Options) -> dict[str, Any]:
        made = requests(question, texts[: question.get("n_texts")])
        way = opened if "rate" in question else closed
        return asyncio.run(way(question, made))

    answer_all(work)


if __name__ == "__main__":
    main()
