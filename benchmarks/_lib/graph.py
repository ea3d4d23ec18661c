"""The graph itself: edgelm's ONNX files beside ONNX Runtime's own best and OpenVINO's, in turns."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _lib.compiled import Compiled
from _lib.data import Data, Row, read_rows
from _lib.results import Goal, at_least, goals_table, table
from _lib.rounds import (
    OPENVINO_PYTHON,
    PEER_PYTHON,
    Contender,
    Spread,
    Worker,
    ratios,
    run_rounds,
)

EDGELM, OPTIMUM, LEGACY, OPENVINO = (
    "edgelm",
    "optimum-onnx O3",
    "legacy exporter, fused",
    "OpenVINO",
)
ORT_PEERS = (OPTIMUM, LEGACY)
PRECISIONS = ("fp32", "int8")
BATCH_SIZES = (8, 16, 32, 64)
SAME = 32  # sequences in a batch, where all get the same batches
N_SQUARE, LENGTH = 4 * 32, 64  # texts of a pass over batches of 32 x 64 tokens
# As edgelm's runtime opens its files; ONNX Runtime's own settings for the others.
EDGELM_OFF = "SkipLayerNormFusion"
LEAST_ORT, LEAST_OPENVINO = 1.25, 1.0


@dataclass(frozen=True)
class Model:
    """A contender of one precision."""

    maker: str
    precision: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.maker} {self.precision}"


def prepare(state: Path, compiled: Compiled, data: Data) -> tuple[list[Model], list[str]]:
    """The models of all, made once for each merged model, and the versions that made them."""
    folder = state / "graphs" / compiled.merged.parent.name[:16]
    finished = folder / "finished.json"
    max_tokens = compiled.manifest.text.max_tokens
    if not finished.exists():
        shutil.rmtree(state / "graphs", ignore_errors=True)
        (folder / "openvino").mkdir(parents=True)
        texts = folder / "texts.json"
        texts.write_text(json.dumps([text for text, _ in read_rows(data.train)]), encoding="utf-8")
        common = {"model": str(compiled.merged), "hugging_face": str(compiled.merged)}
        fused = _prepare("prepare_fused.py", PEER_PYTHON, {**common, "folder": str(folder)})
        vino = {**common, "folder": str(folder / "openvino"), "max_tokens": max_tokens}
        vino |= {"onnx": str(folder / "plain" / "model.onnx"), "texts": str(texts)}
        made = {**fused, **_prepare("prepare_openvino.py", OPENVINO_PYTHON, vino)}
        finished.write_text(json.dumps(made), encoding="utf-8")
    models = [
        Model(EDGELM, p, compiled.bundle / "variants" / f"onnx-{p}" / "model.onnx")
        for p in PRECISIONS
    ]
    for p in PRECISIONS:
        models.append(Model(OPTIMUM, p, folder / "optimum" / f"model_{p}.onnx"))
        models.append(Model(LEGACY, p, folder / "legacy" / f"model_{p}.onnx"))
        models.append(Model(OPENVINO, p, folder / "openvino" / f"{p}.xml"))
    made = json.loads(finished.read_text(encoding="utf-8"))
    listed = ", ".join(f"{package} {version}" for package, version in made.items())
    return models, [f"the peers' environments: {listed}"]


def _prepare(script: str, python: Path, options: dict[str, Any]) -> dict[str, str]:
    sys.stderr.write(f"  {script.removesuffix('.py').replace('_', ' ')} …\n")
    with Worker(script, script, options, python=python) as worker:
        return worker.ready["versions"]


def section(
    state: Path,
    compiled: Compiled,
    data: Data,
    rows: Sequence[Row],
    *,
    rounds: int,
    threads: int,
) -> tuple[str, list[str]]:
    """The text of the section, and the peers' versions."""
    models, said = prepare(state, compiled, data)
    file = state / "texts.json"
    file.write_text(json.dumps([text for text, _ in rows]), encoding="utf-8")
    common = {
        "texts": str(file),
        "threads": threads,
        "max_tokens": compiled.manifest.text.max_tokens,
        "hugging_face": str(compiled.merged),
    }
    tables: dict[str, dict[str, list[float]]] = {}
    ways: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for model in models:
            sys.stderr.write(f"loading {model.name}\n")
            is_vino, python = model.maker == OPENVINO, sys.executable
            options = {**common, "model": str(model.path), "float32": model.precision == "fp32"}
            options["engine"] = "openvino" if is_vino else "onnxruntime"
            if model.maker == EDGELM:
                options["disabled_optimizers"] = EDGELM_OFF
            worker = Worker(
                model.name,
                "graph_speed.py",
                options,
                python=OPENVINO_PYTHON if is_vino else python,
                threads=threads,
            )
            workers[model.name] = stack.enter_context(worker)
        own = {
            p: stack.enter_context(
                Worker(
                    f"edgelm.predict {p}",
                    "edgelm_speed.py",
                    {**common, "bundle": str(compiled.bundle), "variant": f"onnx-{p}"},
                    threads=threads,
                )
            )
            for p in PRECISIONS
        }
        accuracy = {m.name: _accuracy(workers[m.name], rows) for m in models}
        for precision in PRECISIONS:
            mine = [workers[m.name] for m in models if m.precision == precision]
            for what in ("tokens", "square"):
                question = {"what": what, "batch_size": SAME}
                asked, ways[f"{what} {precision}"] = _best_of(mine, [question])
                tables[f"{what} {precision}"] = run_rounds(asked, rounds)
            questions = [{"what": "strings", "batch_size": size} for size in BATCH_SIZES]
            asked, ways[f"strings {precision}"] = _best_of(mine[1:], questions)
            asked = [Contender(mine[0].name, own[precision], {}), *asked]
            tables[f"strings {precision}"] = run_rounds(asked, rounds)
    text = _render(tables, ways, accuracy, len(rows), threads)
    return f"{text}\n\n{_by_operator(compiled, models, threads, rounds)}", said


def _best_of(
    workers: Sequence[Worker], questions: Sequence[dict[str, Any]]
) -> tuple[list[Contender], dict[str, str]]:
    """Each worker in its fastest way, the better of two passes, and what that way is."""
    asked: list[Contender] = []
    told: dict[str, str] = {}
    for worker in workers:
        tried = [{**q, "side_by_side": side} for q in questions for side in (False, True)]
        times = [min(float(worker.ask(**q)["seconds"]) for _ in range(2)) for q in tried]
        best = tried[times.index(min(times))]
        asked.append(Contender(worker.name, worker, best))
        way = "side by side" if best["side_by_side"] else "one by one"
        told[worker.name] = f"{best['batch_size']}, {way}"
    return asked, told


def _accuracy(worker: Worker, rows: Sequence[Row]) -> float:
    found = worker.ready["labels"]
    return sum(a == label for a, (_, label) in zip(found, rows, strict=True)) / len(rows)


_TITLES = {
    "tokens": "tokens to logits, the same batches of {same} texts sorted by length for all",
    "square": "batches of 32 x 64 tokens",
    "strings": "strings to labels; edgelm by `predict`, the others at their best batch size",
}


def _render(
    tables: dict[str, dict[str, list[float]]],
    ways: dict[str, dict[str, str]],
    accuracy: dict[str, float],
    n: int,
    threads: int,
) -> str:
    rounds = len(next(iter(next(iter(tables.values())).values())))
    lines = [
        f"One fine-tuned model, {threads} threads, each contender in a process of its own, "
        f"{rounds} rounds in turns; ratios are taken round by round. The {n:,} test texts, and "
        f"{N_SQUARE // 32} batches of 32 x {LENGTH} random tokens. Each runs its batches one by "
        "one on all threads or side by side on one each, whichever is faster for it (for OpenVINO "
        "the hints LATENCY or THROUGHPUT); both were tried, the better of two passes.",
        "",
        f"- {OPTIMUM}: exported, then ORTOptimizer at O3; {LEGACY}: torch.onnx with dynamo=False, "
        "then onnxruntime.transformers for BERT; int8 of both by quantize_dynamic with a scale for "
        "each channel",
        f"- {OPENVINO}: float32 with INFERENCE_PRECISION_HINT f32; int8 by NNCF for transformers, "
        "calibrated on 300 training texts, at OpenVINO's own settings",
        "",
    ]
    goals: list[Goal] = []
    for key, seconds in tables.items():
        what, precision = key.split()
        ours, n_texts = seconds[f"{EDGELM} {precision}"], N_SQUARE if what == "square" else n
        cells: list[list[str]] = []
        for name, times in seconds.items():
            gain = "1" if times is ours else ratios(times, ours).show()
            rate = Spread.of([n_texts / s for s in times]).show(0)
            cells.append(
                [name, ways[key].get(name, "its own"), rate, gain, f"{accuracy[name]:.4f}"]
            )
        head = [_TITLES[what].format(same=SAME), "batch", "texts/s (min-max)"]
        lines += [table([*head, "edgelm is x faster (min-max)", "accuracy"], cells), ""]
        if what != "strings":
            goals += _goals(seconds, what, precision)
    return "\n".join([*lines, goals_table(goals)])


def _goals(seconds: dict[str, list[float]], what: str, precision: str) -> list[Goal]:
    ours = seconds[f"{EDGELM} {precision}"]
    place = "32 x 64" if what == "square" else "texts"
    best = min(ORT_PEERS, key=lambda maker: Spread.of(seconds[f"{maker} {precision}"]).median)
    said = f"{precision}, {place}: faster than"
    goals = [
        at_least(f"{said} {best}", LEAST_ORT, ratios(seconds[f"{best} {precision}"], ours), "x")
    ]
    if precision == "int8":
        gain = ratios(seconds[f"{OPENVINO} int8"], ours)
        goals.append(at_least(f"{said} {OPENVINO}", LEAST_OPENVINO, gain, "x"))
    return goals


def _by_operator(compiled: Compiled, models: Sequence[Model], threads: int, runs: int) -> str:
    """Shares of a batch of 32 x 64 tokens, and how near products come to the machine's peak."""
    options = {"threads": threads, "runs": max(runs, 3), "disabled_optimizers": EDGELM_OFF}
    parts: list[str] = []
    with Worker("profile", "graph_profile.py", options, threads=threads) as worker:
        peaks = worker.ask()
        parts.append(
            f"Where the peak goes, on a batch of 32 x {LENGTH} by ONNX Runtime's profiler: the "
            f"machine's products reach {peaks['float32'] / 1e9:,.0f} GFLOP/s in float32 and "
            f"{peaks['int8'] / 1e9:,.0f} GOP/s in int8 (ONNX Runtime's MatMul and MatMulInteger "
            f"by a constant, the best of four sizes, {threads} threads)."
        )
        for model in models:
            if model.maker == EDGELM:
                peak = peaks["int8" if model.precision == "int8" else "float32"]
                found = worker.ask(model=str(model.path))["operators"]
                parts.append(_operators(model.name, found, peak))
    return "\n\n".join(parts)


def _operators(name: str, found: dict[str, dict[str, float]], peak: float) -> str:
    total = sum(one["seconds"] for one in found.values())
    work = sum(one["operations"] for one in found.values())
    cells: list[list[str]] = []
    for op, one in sorted(found.items(), key=lambda item: -item[1]["seconds"]):
        if one["seconds"] < 0.005 * total:
            continue
        rate = one["operations"] / one["seconds"] if one["operations"] else None
        cells.append(_cells(op, one["seconds"], total, rate, peak))
    cells.append(_cells("all", total, total, work / total, peak))
    return table([f"{name}: operator", "ms", "of the time", "GOP/s", "of the peak"], cells)


def _cells(op: str, seconds: float, total: float, rate: float | None, peak: float) -> list[str]:
    reached = ["-", "-"] if rate is None else [f"{rate / 1e9:,.0f}", f"{100 * rate / peak:.0f} %"]
    return [op, f"{1000 * seconds:.2f}", f"{100 * seconds / total:.1f} %", *reached]
