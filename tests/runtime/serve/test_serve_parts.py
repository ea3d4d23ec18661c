"""The parts of the server that need no process: queue, keys, configuration, figures."""

from __future__ import annotations

import asyncio
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import write_config

from edgelm.runtime.errors import UsageError
from edgelm.runtime.serve.config import ModelConfig, ServeConfig, read_config
from edgelm.runtime.serve.figures import Counter, Figures, Histogram
from edgelm.runtime.serve.http import encode
from edgelm.runtime.serve.keys import add_key, read_keys
from edgelm.runtime.serve.lane import Version
from edgelm.runtime.serve.text_lane import TextLane, TextRequest
from edgelm.runtime.serve.waiting import CHARGE_TOKENS, FairQueue, Waiting
from edgelm.runtime.trust.policy import NO_TRUST


def test_a_busy_client_does_not_delay_the_others() -> None:
    queue: FairQueue[Waiting] = FairQueue(10**6, 10**6)
    for _ in range(20):
        assert queue.put(Waiting("busy", CHARGE_TOKENS))
    for _ in range(2):
        assert queue.put(Waiting("calm", CHARGE_TOKENS))
    order = [found.client for found in iter(queue.take, None)]
    assert order[:4].count("calm") == 2 and len(order) == 22


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 900), st.sampled_from("put take drop")),
        max_size=60,
    )
)
def test_the_queue_never_holds_more_than_its_bounds(steps: list[tuple[str, int, str]]) -> None:
    queue: FairQueue[Waiting] = FairQueue(2000, 8)
    inside: list[Waiting] = []
    for client, n_tokens, step in steps:
        if step == "put":
            waiting = Waiting(client, n_tokens)
            fits = sum(w.n_tokens for w in inside) + n_tokens <= 2000 and len(inside) < 8
            assert queue.put(waiting) == (fits or not inside)
            inside += [waiting] if fits or not inside else []
        elif step == "drop" and inside:
            queue.drop(inside.pop(n_tokens % len(inside)))
        elif step == "take":
            found = queue.take()
            assert (found is None) == (not inside)
            if found is not None:
                same = [w for w in inside if w.client == found.client]
                assert found is same[0]  # first in, first out for each client
                inside.remove(found)
        assert queue.n_tokens == sum(w.n_tokens for w in inside)
        assert queue.n_requests == len(inside)


def test_what_is_dropped_is_not_held() -> None:
    class Heavy(Waiting):
        pass

    queue: FairQueue[Waiting] = FairQueue(10**6, 10**6)
    request = Heavy("a", 1)
    gone = weakref.ref(request)
    queue.put(request)
    queue.put(Waiting("a", 1))
    queue.drop(request)
    del request
    assert gone() is None


class Recorder:
    """In the place of a worker's process: keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any]) -> None:
        self.sent.append(header)


def test_one_clients_text_fails_no_one_elses(classifier: Path) -> None:
    async def run() -> None:
        model = ModelConfig(str(classifier))
        version = Version(classifier, NO_TRUST)
        lane = TextLane("m", model, version, ServeConfig(trust="none"), Figures())
        worker: Any = Recorder()
        lane.worker = worker
        asked = [TextRequest("a", 1, [text], scores=text == "good") for text in "12"]
        asked += [TextRequest("b", 1, ["good"], True), TextRequest("c", 1, ["bad"])]
        asked += [TextRequest("d", 1, ["plain"])]
        for request in asked:
            lane.submit(request)
        row = {"label": "x", "score": 1.0, "scores": {"x": 1.0}}
        told: dict[str, Any] = {"op": "texts", "tokens": [3], "truncated": [], "answers": [row]}
        error = {"kind": "usage", "message": "no", "hint": None}
        for n in range(2):  # the first two went by themselves, the others wait behind them
            lane.on_message(worker, {**told, "id": worker.sent[n]["id"]}, b"")
        together = worker.sent[2]
        assert together["texts"] == ["good", "bad", "plain"]
        lane.on_message(worker, {"op": "error", "error": error, "id": together["id"]}, b"")
        alone = {header["texts"][0]: header["id"] for header in worker.sent[3:]}
        assert list(alone) == ["good", "bad", "plain"]
        lane.on_message(worker, {**told, "id": alone["good"]}, b"")
        lane.on_message(worker, {**told, "id": alone["plain"]}, b"")
        lane.on_message(worker, {"op": "error", "error": error, "id": alone["bad"]}, b"")
        assert asked[2].future.result().answers == [row]
        assert asked[4].future.result().answers == [{"label": "x", "score": 1.0}]  # none asked for
        assert asked[3].future.exception() is not None
        assert lane.n_answering == 0

    asyncio.run(run())


def test_half_a_surrogate_pair_is_told_as_its_escape() -> None:
    assert json.loads(encode({"key": "\ud800"})) == {"key": "\ud800"}


def test_keys_are_told_once_and_kept_as_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    one, two = add_key(file, "one", ("predict",)), add_key(file, "two", ("watch", "admin"))
    keys = read_keys(file)
    found = keys.find(two.encode())
    assert found is not None and (found.name, found.scopes) == ("two", {"watch", "admin"})
    assert keys.find(b"edgelm-x") is None and keys.find(b"") is None
    assert one not in file.read_text() and two not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="already"):
        add_key(file, "one", ("predict",))
    with pytest.raises(UsageError, match="name"):
        add_key(file, "a b", ("predict",))


@pytest.mark.parametrize("line", ["", "a predict", "a predict abc", "a root " + "0" * 64])
def test_a_broken_file_of_keys_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{line}\n")
    with pytest.raises(UsageError, match="keys"):
        read_keys(file)


def test_flags_stand_over_the_file(tmp_path: Path) -> None:
    file = write_config(tmp_path / "serve.yaml", models=[{"path": "a"}], port=1, no_auth=True)
    config = read_config(file, {"port": 2, "host": None})
    assert (config.port, config.host, config.no_auth) == (2, "127.0.0.1", True)
    assert config.models[0].path == "a"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": "x"}, "port"),
        ({"port": 70_000}, "65535"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"tls_cert": "a"}, "tls_key"),
        ({"models": [{"path": "a", "sequences": 0}]}, "sequences"),
    ],
)
def test_a_wrong_file_names_its_key(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_config(write_config(tmp_path / "serve.yaml", **keys), {})


@pytest.mark.parametrize(
    ("config", "ok"),
    [
        (ServeConfig(), False),
        (ServeConfig(no_auth=True), True),
        (ServeConfig(no_auth=True, host="::1"), True),
        (ServeConfig(no_auth=True, host="0.0.0.0"), False),
        (ServeConfig(no_auth=True, host="example.org"), False),
        (ServeConfig(keys="k", host="0.0.0.0"), True),
        (ServeConfig(keys="k", no_auth=True), False),
    ],
)
def test_nobody_is_let_in_by_default(config: ServeConfig, ok: bool) -> None:
    if ok:
        config.check_access()
        return
    with pytest.raises(UsageError):
        config.check_access()


def test_the_text_format() -> None:
    counter = Counter("n_total", "Of all.", ["who"])
    counter.add(2, 'a"b\\c\nd')
    assert list(counter.lines()) == ['n_total{who="a\\"b\\\\c\\nd"} 2']
    histogram = Histogram("s", "Seconds.", ["m"], (0.5, 1))
    for value in (0.5, 0.7, 3):
        histogram.observe(value, "x")
    assert list(histogram.lines()) == [
        's_bucket{m="x",le="0.5"} 1',
        's_bucket{m="x",le="1"} 2',
        's_bucket{m="x",le="+Inf"} 3',
        's_sum{m="x"} 4.2',
        's_count{m="x"} 3',
    ]
