"""Workers that die, versions that change, and the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, client_of, figure, serving, wait_until

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX signals")
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["i lost my card"]}
RUNNING = 'edgelm_requests_running{model="classifier"}'
DEPTH = 'edgelm_queue_depth{model="classifier"}'


def ask(http: httpx.Client) -> httpx.Response:
    return http.post("/v1/classify", json={"input": "i lost my card"})


def takes_connections(served: Served) -> bool:
    try:
        return httpx.get(f"{served.url}/health/live", trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def bundle(classifier: Path, tmp_path: Path) -> Path:
    """A link to a copy, as an operator would swap it."""
    shutil.copytree(classifier, tmp_path / "one")
    (tmp_path / "current").symlink_to("one")
    return tmp_path / "current"


@pytest.fixture
def served(bundle: Path) -> Iterator[Served]:
    with serving(bundle, "--no-auth", "--threads", 1, ready=("classifier",)) as found:
        yield found


def put(bundle: Path, name: str, **changes: Any) -> None:
    """Let the link point to a copy whose manifest has those changes."""
    made = bundle.parent / name
    shutil.copytree(bundle, made)
    manifest = json.loads((made / "edgelm.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        part = manifest
        *path, last = key.split("__")
        for step in path:
            part = part[step]
        part[last] = value
    (made / "edgelm.json").write_text(json.dumps(manifest), encoding="utf-8")
    link = bundle.with_name("new")
    link.symlink_to(name)
    link.replace(bundle)


def test_a_dead_worker_takes_only_its_own_requests(served: Served) -> None:
    with client_of(served) as http, ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            pid = [e for e in served.events if e["event"] == "ready"][-1]["pid"]
            os.kill(pid, signal.SIGSTOP)
            inside = [pool.submit(ask, http) for _ in range(2)]
            wait_until(lambda: figure(http, RUNNING) == 2)
            waiting = [pool.submit(ask, http) for _ in range(3)]
            wait_until(lambda: figure(http, DEPTH) == 3)
            n_events = len(served.events)
            os.kill(pid, signal.SIGKILL)
            for answer in inside:
                lost = answer.result()
                assert lost.status_code == 503 and lost.headers["retry-after"]
                assert lost.json()["error"]["code"] == "worker_lost"
            assert [answer.result().status_code for answer in waiting] == [200] * 3
            served.wait_for("ready", after=n_events)
        assert figure(http, 'edgelm_worker_restarts_total{model="classifier"}') == 3
        assert http.get("/health/ready").is_success


def test_not_ready_until_golden_answers_hold(bundle: Path) -> None:
    manifest = json.loads((bundle / "edgelm.json").read_text(encoding="utf-8"))
    variants = [
        {**v, "golden": [[x + 3 * (i + 1) for i, x in enumerate(row)] for row in v["golden"]]}
        for v in manifest["variants"]
    ]
    put(bundle, "wrong", variants=variants)
    with serving(bundle, "--no-auth") as served:
        failed = served.wait_for("start_failed")
        assert "golden" in failed["error"]
        with client_of(served) as http:
            assert http.get("/health/live").is_success
            assert http.get("/health/ready").status_code == 503
            refused = ask(http)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_ready"
            put(bundle, "right", variants=manifest["variants"])
            served.wait_for("ready")
            assert ask(http).status_code == 200


def test_a_new_version_takes_over_without_a_failed_or_mixed_answer(
    served: Served, bundle: Path
) -> None:
    labels = json.loads((bundle / "edgelm.json").read_text(encoding="utf-8"))["task"]["labels"]
    seen: list[tuple[str, str]] = []
    failed: list[Any] = []
    done = threading.Event()

    def load() -> None:
        with client_of(served) as http:
            while not done.is_set():
                answer = http.post("/v2/models/classifier/infer", json={"inputs": [TENSOR]})
                if not answer.is_success:
                    failed.append(answer.text)
                    return
                found = answer.json()
                seen.append((found["model_version"], found["outputs"][0]["data"][0]))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    with client_of(served) as http:
        for n in range(2, 6):
            put(bundle, str(n), version=f"{n}.0.0", task__labels=[f"{x} {n}" for x in labels])
            if n % 2:
                http.post("/v1/admin/reload", json={}).raise_for_status()
            else:
                n_events = len(served.events)
                served.signal(signal.SIGHUP)
                served.wait_for("swapped", after=n_events)
            n_seen = len(seen)
            wait_until(lambda n_seen=n_seen: len(seen) > n_seen + 20 or bool(failed))
        put(bundle, "broken", task__labels=["a"])
        refused = http.post("/v1/admin/reload", json={})
        assert refused.status_code == 409 and "old version stays" in refused.text
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    old = json.loads((bundle.parent / "one" / "edgelm.json").read_text(encoding="utf-8"))
    assert {version for version, _ in seen} == {old["version"], *(f"{n}.0.0" for n in range(2, 6))}
    for version, label in seen:
        assert version == old["version"] or label.endswith(f" {version[0]}")


def test_what_was_accepted_is_answered_before_the_end(served: Served) -> None:
    pid = served.wait_for("ready")["pid"]
    with client_of(served) as http, ThreadPoolExecutor(8) as pool:
        os.kill(pid, signal.SIGSTOP)
        answers = [pool.submit(ask, http) for _ in range(6)]
        wait_until(lambda: figure(http, RUNNING) + figure(http, DEPTH) == 6)
        served.signal(signal.SIGTERM)
        wait_until(lambda: not takes_connections(served))
        os.kill(pid, signal.SIGCONT)
        assert [answer.result().status_code for answer in answers] == [200] * 6
    assert served.end() == 0


def test_the_end_while_a_model_loads(classifier: Path) -> None:
    served = Served([classifier, "--no-auth"])
    assert served.end() == 0
