"""More than a worker can do: a worker that stands still (SIGSTOP) makes every queue as full as the
test wants it, whatever the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import PATIENCE_S, Served, client_of, figure, serving, wait_until, write_config

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX signals")


@pytest.fixture(scope="module")
def small(
    classifier: Path, talker: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with little room and little patience."""
    models = [
        {"path": str(classifier), "name": "classifier", "threads": 1, "variant": "onnx-fp32"},
        {"path": str(talker), "name": "talker", "threads": 1, "variant": "gguf-f32",
         "sequences": 1},
    ]  # fmt: skip
    keys: dict[str, Any] = {"queue_requests": 4, "header_s": 0.5, "body_s": 0.5}
    file = write_config(tmp_path_factory.mktemp("small") / "serve.yaml", models=models, **keys)
    with serving("--config", file, "--no-auth", ready=("classifier", "talker")) as found:
        yield found


@pytest.fixture
def http(small: Served) -> Iterator[httpx.Client]:
    with client_of(small) as client:
        yield client


def stop_worker(served: Served, name: str) -> Callable[[], None]:
    """Let the model's worker stand still; what it returns lets it go on."""
    pid = served.wait_for("ready", model=name)["pid"]
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def ask(http: httpx.Client, **headers: str) -> httpx.Response:
    body = {"model": "classifier", "input": "i lost my card"}
    return http.post("/v1/classify", json=body, headers=headers)


def test_a_full_queue_refuses_at_once_and_keeps_what_it_took(
    small: Served, http: httpx.Client
) -> None:
    go_on = stop_worker(small, "classifier")
    depth = 'edgelm_queue_depth{model="classifier"}'
    running = 'edgelm_requests_running{model="classifier"}'
    with ThreadPoolExecutor(16) as pool:
        try:
            taken: list[Future[httpx.Response]] = []
            for n in range(1, 7):  # two batches of one go to the worker, four wait
                taken.append(pool.submit(ask, http))
                wait_until(lambda n=n: figure(http, depth) + figure(http, running) == n)
            assert figure(http, depth) == 4
            refused = [ask(http) for _ in range(3)]
        finally:
            go_on()
        assert [answer.result().status_code for answer in taken] == [200] * 6
    for answer in refused:
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "overloaded"
    assert figure(http, 'edgelm_rejected_total{reason="queue_full"}') == 3
    assert ask(http).status_code == 200


def test_what_waited_makes_one_batch(small: Served, http: httpx.Client) -> None:
    running = 'edgelm_requests_running{model="classifier"}'
    batches = 'edgelm_batch_texts_count{model="classifier"}'
    before = figure(http, batches)
    go_on = stop_worker(small, "classifier")
    depth = 'edgelm_queue_depth{model="classifier"}'
    with ThreadPoolExecutor(16) as pool:
        try:
            taken: list[Future[httpx.Response]] = []
            for n in range(1, 7):
                taken.append(pool.submit(ask, http))
                wait_until(lambda n=n: figure(http, depth) + figure(http, running) == n)
        finally:
            go_on()
        assert [answer.result().status_code for answer in taken] == [200] * 6
    assert figure(http, batches) - before == 3


def test_a_deadline_ends_the_wait(small: Served, http: httpx.Client) -> None:
    go_on = stop_worker(small, "classifier")
    try:
        answer = ask(http, **{"x-edgelm-deadline-ms": "50"})
    finally:
        go_on()
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert ask(http).status_code == 200
    assert ask(http, **{"x-edgelm-deadline-ms": "soon"}).status_code == 400


def test_a_client_that_leaves_frees_its_place(small: Served, http: httpx.Client) -> None:
    running = 'edgelm_requests_running{model="talker"}'
    depth = 'edgelm_queue_depth{model="talker"}'
    go_on = stop_worker(small, "talker")
    body = {"model": "talker", "prompt": "where is my parcel", "max_tokens": 100, "stream": True}
    try:
        impatient = httpx.Client(base_url=small.url, timeout=0.2, trust_env=False)
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                impatient.post("/v1/completions", json=body)
        impatient.close()
        wait_until(lambda: figure(http, depth) == 0)
    finally:
        go_on()
    wait_until(lambda: figure(http, running) == 0)
    # cancelled before the worker came to them, so hardly a token was computed
    assert figure(http, 'edgelm_tokens_total{model="talker",kind="answer"}') <= 100


def test_a_stream_that_is_left_stops(small: Served, http: httpx.Client) -> None:
    running = 'edgelm_requests_running{model="talker"}'
    body = {"model": "talker", "prompt": "where is my parcel", "max_tokens": 100, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: figure(http, running) == 0)


def raw(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


@pytest.mark.parametrize("head", [b"", b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_slow_head_is_cut(small: Served, head: bytes) -> None:
    with raw(small) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b""


def test_a_slow_second_head_is_cut(small: Served) -> None:
    with raw(small) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in connection.recv(1000)
        connection.sendall(b"GET /health/live HTTP")
        while connection.recv(1000):
            pass


def flood(connection: socket.socket) -> None:
    """Header lines, 50 MB of them."""
    for i in range(100_000):
        connection.sendall(f"x-{i}: {'a' * 500}\r\n".encode())


def test_a_head_without_end_is_cut(small: Served) -> None:
    with raw(small) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
        with contextlib.suppress(OSError):  # the server hung up
            flood(connection)
        with contextlib.suppress(ConnectionResetError):
            assert b" 200 " not in connection.recv(10_000)


def test_a_head_without_end_is_cut_behind_an_open_request(small: Served) -> None:
    body = json.dumps({"model": "classifier", "input": "hi"}).encode()
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    go_on = stop_worker(small, "classifier")
    with raw(small) as connection:
        connection.sendall(head + body + b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
        with pytest.raises(ConnectionError):
            flood(connection)
    go_on()


def test_a_slow_body_is_refused(small: Served) -> None:
    with raw(small) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health/live HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 18_000 + b"\r\n\r\n", b"431"),
        (b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n", b"413"),
        (b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
         b"400"),
        (b"DELETE /v1/classify HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(small: Served, data: bytes, status: bytes) -> None:
    with raw(small) as connection:
        connection.sendall(data)
        assert connection.recv(10_000).split()[1] == status


def test_a_body_without_end_is_cut(small: Served) -> None:
    with raw(small) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        )

        def pour() -> None:
            piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
            try:
                for _ in range(200):
                    connection.sendall(piece)
            except OSError:  # the server hung up
                pass

        pouring = threading.Thread(target=pour)
        pouring.start()
        assert connection.recv(10_000).startswith(b"HTTP/1.1 413")
        pouring.join()
