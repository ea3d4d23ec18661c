"""`edgelm serve` under load: single texts, and more of them than it can answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _lib.compiled import Compiled, prepare_peers
from _lib.data import Row
from _lib.results import Goal, at_least, at_most, report
from _lib.rounds import (
    PEER_PYTHON,
    Spread,
    Told,
    Worker,
    environment,
    need_peers,
    ratios,
    run_rounds,
)

VARIANT = "onnx-int8"
SERVED, IN_PROCESS = "edgelm serve", "edgelm predict, in process, a list"
OPTIMUM, TORCH = "FastAPI, pipeline of optimum-onnx int8", "FastAPI, pipeline of torch fp32"
CLIENTS = 32
QUEUE_REQUESTS = 32  # that wait, of the overload: as many as there are clients at capacity
FACTORS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Server:
    """Something that answers POST requests of one text."""

    name: str
    load: Worker
    port: int
    path: str
    key: str

    def ask(self, **more: Any) -> Told:
        told = self.load.ask(port=self.port, path=self.path, key=self.key, clients=CLIENTS, **more)
        if set(told["n"]) != {"200"} and "rate" not in more:
            raise RuntimeError(f"{self.name}: statuses {told['n']}")
        return told


@dataclass(frozen=True)
class InProcess:
    """The same texts without HTTP."""

    name: str
    worker: Worker

    def ask(self) -> Told:
        return self.worker.ask()


@contextmanager
def running(state: Path, bundle: Path, threads: int, **keys: Any) -> Iterator[tuple[int, int]]:
    """A server; its port and process. It writes no line a request, as its peers write none."""
    file, log = state / "serve.yaml", state / "serve.log"
    model = {"path": str(bundle), "variant": VARIANT, "threads": threads}
    file.write_text(json.dumps({"models": [model], "log_requests": False, **keys}))
    command = [sys.executable, "-m", "edgelm", "serve", "--config", str(file), "--no-auth"]
    command += ["--trust", "none"]
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment(threads)
        )
        try:
            assert process.stderr is not None
            port = 0
            for line in process.stderr:
                said.write(line)
                event = json.loads(line) if line.startswith("{") else {"event": ""}
                if event["event"] == "listening":
                    port = int(event["url"].rpartition(":")[2])
                if event["event"] == "ready":
                    break
            else:
                raise RuntimeError(f"edgelm serve: ended; see {log}")
            yield port, process.pid
        finally:
            process.terminate()
            said.write(process.communicate()[1])


def throughput(
    state: Path, compiled: Compiled, rows: Sequence[Row], *, rounds: int, threads: int
) -> tuple[str, list[str]]:
    """The text of the section, and the peers' versions."""
    need_peers()
    peers = prepare_peers(state, compiled)
    file = _texts(state, rows)
    max_tokens = compiled.manifest.text.max_tokens
    common = {"texts": file, "threads": threads, "max_tokens": max_tokens}
    peer = {**common, "hugging_face": str(compiled.merged)}
    with ExitStack() as stack:
        load = stack.enter_context(Worker("load", "http_load.py", {"texts": file}))

        def fastapi(name: str, engine: str, model: Path) -> Server:
            options = {**peer, "engine": engine, "model": str(model)}
            script = "fastapi_pipeline.py"
            worker = Worker(name, script, options, python=PEER_PYTHON, threads=threads)
            listed.update(stack.enter_context(worker).ready["versions"])
            return Server(name, load, worker.ready["port"], "/classify", "text")

        listed: dict[str, str] = {}
        port, _ = stack.enter_context(running(state, compiled.bundle, threads))
        options = {**common, "bundle": str(compiled.bundle), "variant": VARIANT}
        alone = Worker(IN_PROCESS, "edgelm_speed.py", options, threads=threads)
        contenders = [
            Server(SERVED, load, port, "/v1/classify", "input"),
            InProcess(IN_PROCESS, stack.enter_context(alone)),
            fastapi(OPTIMUM, "optimum", peers.optimum_int8),
            fastapi(TORCH, "torch", compiled.merged),
        ]
        for contender in contenders:
            contender.ask()  # warm
        seconds = run_rounds(contenders, rounds)
    versions = ", ".join(f"{name} {version}" for name, version in listed.items())
    return _render(seconds, len(rows), threads), [f"the peers' environment: {versions}"]


def _render(seconds: dict[str, list[float]], n: int, threads: int) -> str:
    ours = seconds[SERVED]
    rows = [
        [name, Spread.of([n / s for s in times]).show(0),
         "1" if name == SERVED else ratios(times, ours).show()]
        for name, times in seconds.items()
    ]  # fmt: skip
    said = [
        f"{n:,} test texts, one a request, from {CLIENTS} clients in a process of their own on "
        f"loopback, {threads} threads for each engine, {len(ours)} rounds in turns. The load "
        "generator and the servers share the cores.",
    ]
    head = ["contender", "texts/s (min-max)", "edgelm serve is x faster (min-max)"]
    goals = [
        *(at_least(f"faster than {name}", 3, ratios(seconds[name], ours), "x")
          for name in (OPTIMUM, TORCH)),
        at_least("of predict in process", 0.6, ratios(seconds[IN_PROCESS], ours), "x"),
    ]  # fmt: skip
    return report(said, head, rows, goals)


def overload(
    state: Path, compiled: Compiled, rows: Sequence[Row], *, duration_s: float, threads: int
) -> str:
    """The text of the section."""
    file = _texts(state, rows)
    with (
        Worker("load", "http_load.py", {"texts": file}) as load,
        running(state, compiled.bundle, threads, queue_requests=QUEUE_REQUESTS) as (port, pid),
    ):
        server = Server(SERVED, load, port, "/v1/classify", "input")
        server.ask()
        told = server.ask()
        capacity = len(rows) / told["seconds"]
        found = {"closed": told}
        memory = {"closed": _memory_mb(pid)}
        for factor in FACTORS:
            name = f"{factor} x"
            found[name] = server.ask(rate=capacity * factor, duration_s=duration_s)
            memory[name] = _memory_mb(pid)
            sys.stderr.write(f"{name}: {found[name]}\n")
    return _render_overload(found, memory, capacity, duration_s)


def _render_overload(
    found: dict[str, Told], memory: dict[str, float], capacity: float, duration_s: float
) -> str:
    table: list[list[str]] = []
    goodput = {name: told["n"].get("200", 0) / told["seconds"] for name, told in found.items()}
    for name, told in found.items():
        others = {status: n for status, n in told["n"].items() if status not in ("200", "429")}
        table.append(
            [
                name,
                f"{sum(told['n'].values()) / told['seconds']:,.0f}",
                f"{goodput[name]:,.0f}",
                f"{1e3 * told['p50_s'].get('200', 0):,.0f}",
                f"{1e3 * told['p99_s'].get('200', 0):,.0f}",
                f"{1e3 * told['p99_s'].get('429', 0):,.0f}",
                str(others or "none"),
                f"{memory[name]:,.0f}",
            ]
        )
    base = found["closed"]["p99_s"]["200"]
    last = f"{FACTORS[-1]} x"
    worst = max(told["p99_s"].get("200", 0) for told in found.values()) / base
    slowest = max(told["p99_s"].get("429", 0) for told in found.values()) * 1e3
    goals: list[Goal] = [
        at_most("accepted p99 over that at capacity", 2, _one(worst), "x"),
        at_least("goodput at most load, of the peak", 0.9,
                 _one(goodput[last] / max(goodput.values())), "x"),
        at_most("p99 of a refusal", 50, _one(slowest), "ms", 0),
    ]  # fmt: skip
    said = [
        f"Capacity, {capacity:,.0f} texts/s, is what {CLIENTS} clients get that wait for their "
        f"answers. Then requests begin at a multiple of it for {duration_s:g} s each, whether "
        f"others were answered or not; {QUEUE_REQUESTS} may wait. The load generator shares the "
        "cores, and what it could not send is left out. Memory is that of all processes.",
    ]
    head = ["load", "sent/s", "answered/s", "p50 ms", "p99 ms", "429 p99 ms", "others", "MB"]
    return report(said, head, table, goals)


def _one(value: float) -> Spread:
    return Spread(value, value, value)


def _texts(state: Path, rows: Sequence[Row]) -> str:
    state.mkdir(parents=True, exist_ok=True)
    file = state / "texts.json"
    file.write_text(json.dumps([text for text, _ in rows]), encoding="utf-8")
    return str(file)


def _memory_mb(pid: int) -> float:
    """Resident memory of the web process and its workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    pages = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in (pid, *children)]
    return sum(pages) * 4096 / 1e6
