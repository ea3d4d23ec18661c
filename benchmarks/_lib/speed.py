"""Speed: texts per second from Python strings to labels, in turns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _lib.compiled import Compiled, prepare_peers
from _lib.data import Row
from _lib.results import Goal, at_least, at_most, report
from _lib.rounds import PEER_PYTHON, Contender, Spread, Worker, need_peers, ratios, run_rounds

BATCH_SIZES = (1, 8, 16, 32, 64)
EDGELM, ENGINE, GGUF = "edgelm onnx-int8", "edgelm onnx-int8, bare engine", "edgelm gguf-q8_0"
OPTIMUM = "transformers pipeline, optimum-onnx int8"
PLAIN = "plain onnxruntime int8 (torch.onnx), sorted"
PLAIN_OPTIMUM = "plain onnxruntime int8 (optimum's file), sorted"
PLAIN_BEST = "plain onnxruntime int8, sorted, faster file and batch size"
TORCH = "transformers pipeline, torch fp32"
USUAL = 64  # plain onnxruntime's batch size where none is looked for


def section(
    state: Path,
    compiled: Compiled,
    rows: Sequence[Row],
    *,
    rounds: int,
    threads: int,
    scan_texts: int,
) -> tuple[str, list[str]]:
    """The text of the section, and the peers' versions."""
    need_peers()
    peers = prepare_peers(state, compiled)
    file = state / "texts.json"
    file.write_text(json.dumps([text for text, _ in rows]), encoding="utf-8")
    max_tokens = compiled.manifest.text.max_tokens
    common = {"texts": str(file), "threads": threads, "max_tokens": max_tokens}
    edgelm = {**common, "bundle": str(compiled.bundle)}
    peer = {**common, "hugging_face": str(compiled.merged)}  # labels and tokenizer
    with ExitStack() as stack:

        def start(name: str, script: str, options: dict[str, Any], python: Any = None) -> Worker:
            sys.stderr.write(f"loading {name}\n")
            worker = Worker(name, script, options, python=python or sys.executable, threads=threads)
            return stack.enter_context(worker)

        onnx = start(EDGELM, "edgelm_speed.py", {**edgelm, "variant": "onnx-int8"})
        gguf = start(GGUF, "edgelm_speed.py", {**edgelm, "variant": "gguf-q8_0"})
        optimum = start(
            OPTIMUM,
            "transformers_speed.py",
            {**peer, "engine": "optimum", "model": str(peers.optimum_int8)},
            PEER_PYTHON,
        )
        torch = start(
            TORCH,
            "transformers_speed.py",
            {**peer, "engine": "torch", "model": str(compiled.merged)},
        )
        ours = start(PLAIN, "onnxruntime_speed.py", {**peer, "model": str(peers.plain_int8)})
        theirs = start(
            PLAIN_OPTIMUM, "onnxruntime_speed.py", {**peer, "model": str(peers.optimum_int8)}
        )
        n_scan = min(scan_texts, len(rows))
        scans = {w.name: _scan(w, n_scan) for w in (optimum, torch, ours, theirs)}
        best = {name: min(times, key=lambda size: times[size]) for name, times in scans.items()}
        faster = min((ours, theirs), key=lambda w: scans[w.name][best[w.name]])
        best[PLAIN_BEST] = best[faster.name]
        best[PLAIN] = best[PLAIN_OPTIMUM] = USUAL

        def batched(name: str, worker: Worker) -> Contender:
            return Contender(name, worker, {"batch_size": best[name]})

        contenders = [
            Contender(EDGELM, onnx, {}),
            Contender(ENGINE, onnx, {"engine": True}),
            batched(OPTIMUM, optimum),
            batched(PLAIN, ours),
            batched(PLAIN_OPTIMUM, theirs),
            batched(PLAIN_BEST, faster),
            Contender(GGUF, gguf, {}),
            batched(TORCH, torch),
        ]
        seconds = run_rounds(contenders, rounds)
        accuracy = {c.name: _accuracy(c.worker.ready["labels"], rows) for c in contenders}
        listed = ", ".join(f"{k} {v}" for k, v in optimum.ready["versions"].items())
    text = _render(seconds, accuracy, scans, best, len(rows), threads, n_scan)
    return text, [f"optimum-onnx's environment: {listed}"]


def _scan(worker: Worker, n_texts: int) -> dict[int, float]:
    """Seconds at each batch size, the better of two passes."""
    times: dict[int, float] = {}
    for size in BATCH_SIZES:
        passes = [float(worker.ask(batch_size=size, n_texts=n_texts)["seconds"]) for _ in range(2)]
        times[size] = min(passes)
    sys.stderr.write(f"{worker.name}: seconds by batch size {times}\n")
    return times


def _accuracy(labels: Sequence[str], rows: Sequence[Row]) -> float:
    right = sum(found == label for found, (_, label) in zip(labels, rows, strict=True))
    return right / len(rows)


def _render(
    seconds: dict[str, list[float]],
    accuracy: dict[str, float],
    scans: dict[str, dict[int, float]],
    best: dict[str, int],
    n: int,
    threads: int,
    n_scan: int,
) -> str:
    ours = seconds[EDGELM]
    rows: list[list[str]] = []
    for name, times in seconds.items():
        rates = Spread.of([n / s for s in times])
        gain = "1" if name == EDGELM else ratios(times, ours).show()
        label = f"{name}, batch {best[name]}" if name in best else name
        rows.append([label, rates.show(0), gain, f"{accuracy[name]:.4f}"])
    head = ["contender", "texts/s (min-max)", "edgelm is x faster (min-max)", "accuracy"]
    rounds = len(ours)
    lines = [
        f"{n:,} test texts, from Python strings to labels, {threads} threads, each contender in a "
        f"process of its own (the bare engine shares edgelm's), loaded and warmed up, {rounds} "
        "rounds in turns. Ratios are taken round by round.",
        "",
        "- the pipelines get the texts in the given order, at their best batch size",
        "- plain onnxruntime: tokenizers' encode_batch, batches sorted by length, argmax; one file "
        f"by torch.onnx and quantize_dynamic, one by optimum-onnx; batches of {USUAL}, and once "
        "at the best batch size of the faster file",
        "- the bare engine gets edgelm's own batches, tokenized and padded before the clock runs",
        f"- batch sizes were tried on {n_scan:,} texts, the better of two passes; texts/s:",
    ]
    for name, times in scans.items():
        listed = ", ".join(f"{size} at a time {n_scan / s:,.0f}" for size, s in times.items())
        lines.append(f"  - {name}: {listed}")
    return report(lines, head, rows, _goals(seconds))


def _goals(seconds: dict[str, list[float]]) -> list[Goal]:
    ours = seconds[EDGELM]
    loss = Spread.of([100 * (1 - b / a) for a, b in zip(ours, seconds[ENGINE], strict=True)])
    return [
        *(
            at_least(f"faster than {name}", least, ratios(seconds[name], ours), "x")
            for name, least in ((OPTIMUM, 2.0), (PLAIN, 1.0), (PLAIN_OPTIMUM, 1.0))
        ),
        at_most("loss against the bare engine", 5, loss, "%", 1),
    ]
