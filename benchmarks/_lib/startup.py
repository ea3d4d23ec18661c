"""Startup: a whole process from `python -c` to its first prediction and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _lib.compiled import Compiled, prepare_peers
from _lib.results import Goal, at_most, report
from _lib.rounds import PEER_PYTHON, Spread, environment, need_peers

TEXT = "I lost my card yesterday, what shall I do?"
MAX_S, MAX_MB = 0.5, 150
MEANT = (
    "Peak MB: VmHWM in 10^6 bytes, mapped files included. Imports: whether torch or transformers "
    "were loaded."
)

EDGELM = """
import edgelm
print(edgelm.load({bundle!r}, variant={variant!r}).predict({text!r}).label)
"""
TORCH = """
from transformers import pipeline
classify = pipeline("text-classification", model={model!r}, tokenizer={tokenizer!r})
print(classify({text!r})[0]["label"])
"""
OPTIMUM = """
from optimum.onnxruntime import ORTModelForSequenceClassification, pipeline
from transformers import AutoTokenizer
model = ORTModelForSequenceClassification.from_pretrained({folder!r}, file_name={file!r})
tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(classify({text!r})[0]["label"])
"""
PLAIN = """
import json
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer
session = ort.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
encoding = Tokenizer.from_file({tokenizer!r} + "/tokenizer.json").encode({text!r})
n = sum(encoding.attention_mask)
feeds = {{"input_ids": encoding.ids, "attention_mask": encoding.attention_mask,
         "token_type_ids": encoding.type_ids}}
feeds = {{i.name: np.array([feeds[i.name][:n]]) for i in session.get_inputs()}}
best = int(session.run(None, feeds)[0].argmax())
print(json.load(open({config!r}))["id2label"][str(best)])
"""
# After the answer, so that it weighs on no figure but by the reading of one small file. On Linux
# getrusage would live on across exec and could show the size of the parent.
AFTER = """
import json as _json, sys as _sys
_peak = None
try:
    _peak = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM:"))
except OSError:
    pass
_heavy = [name for name in ("torch", "transformers") if name in _sys.modules]
print(_json.dumps({"peak_kib": _peak, "heavy": _heavy}))
"""


@dataclass(frozen=True)
class Program:
    """What is started."""

    name: str
    python: str | Path
    code: str


@dataclass(frozen=True)
class Start:
    """One run."""

    answer_s: float  # until the answer was printed
    wall_s: float  # until the process had ended
    peak_mb: float | None
    heavy: tuple[str, ...]  # torch, transformers, where they were imported
    answer: str


def section(state: Path, compiled: Compiled, *, runs: int) -> str:
    """From Python's start to the first prediction."""
    return _render(start_in_turns(_programs(state, compiled), runs), runs)


def start_in_turns(programs: Sequence[Program], runs: int) -> dict[str, list[Start]]:
    """Start each program `runs` times, in turns, after one start that is not counted."""
    found: dict[str, list[Start]] = {program.name: [] for program in programs}
    for i in range(runs + 1):
        for program in programs:
            start = run(program)
            if i > 0:
                found[program.name].append(start)
        sys.stderr.write(f"starts {i}/{runs}\n" if i else "warm-up done\n")
    return found


def run(program: Program) -> Start:
    """Start it once."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(program.python), "-c", program.code + AFTER],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environment(None), "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        answer_s = time.perf_counter() - started
        rest = process.stdout.read()
        code = process.wait()
        wall_s = time.perf_counter() - started
        process.stdout.close()
        errors.seek(0)
        if code != 0 or not rest:
            raise RuntimeError(f"{program.name}: exit code {code}\n{errors.read()[-3000:]}")
    facts = json.loads(rest.strip().splitlines()[-1])
    peak = facts["peak_kib"]
    heavy = tuple(facts["heavy"])
    return Start(answer_s, wall_s, None if peak is None else peak * 1024 / 1e6, heavy, answer)


def edgelm(compiled: Compiled, variant: str, code: str, text: str) -> Program:
    """Of a variant, whose code is written into the template `code`."""
    written = code.format(bundle=str(compiled.bundle), variant=variant, text=text)
    return Program(f"edgelm {variant}", sys.executable, written)


def _programs(state: Path, compiled: Compiled) -> list[Program]:
    need_peers()
    peers = prepare_peers(state, compiled)
    merged = str(compiled.merged)
    programs = [edgelm(compiled, name, EDGELM, TEXT) for name in ("onnx-int8", "gguf-q8_0")]
    plain = PLAIN.format(
        model=str(peers.plain_int8), tokenizer=merged, config=f"{merged}/config.json", text=TEXT
    )
    torch = TORCH.format(model=merged, tokenizer=merged, text=TEXT)
    optimum = OPTIMUM.format(
        folder=str(peers.optimum_int8.parent),
        file=peers.optimum_int8.name,
        tokenizer=merged,
        text=TEXT,
    )
    return [
        *programs,
        Program("plain onnxruntime int8 + tokenizers", sys.executable, plain),
        Program("transformers pipeline, optimum-onnx int8", PEER_PYTHON, optimum),
        Program("transformers pipeline, torch fp32", sys.executable, torch),
    ]


def _render(found: dict[str, list[Start]], runs: int) -> str:
    rows = [
        [
            name,
            Spread.of([s.answer_s for s in starts]).show(),
            Spread.of([s.wall_s for s in starts]).show(),
            show_peak(starts),
            show_heavy(starts),
            starts[0].answer,
        ]
        for name, starts in found.items()
    ]
    head = ["program", "s to the answer", "s to its end", "peak MB", "imports", "answer"]
    said = (
        f"A new `python -c` that loads the model and answers {TEXT!r}, {runs} starts in turns "
        f"after one that is not counted (so files are in the page cache): median (min-max). {MEANT}"
    )
    return report([said], head, rows, _goals(found))


def peak(starts: Sequence[Start]) -> Spread | None:
    """MB, where the system tells."""
    peaks = [s.peak_mb for s in starts if s.peak_mb is not None]
    return Spread.of(peaks) if peaks else None


def show_peak(starts: Sequence[Start]) -> str:
    """A cell of the table."""
    found = peak(starts)
    return "-" if found is None else found.show(0)


def show_heavy(starts: Sequence[Start]) -> str:
    """A cell of the table."""
    return ", ".join(starts[0].heavy) or "neither"


def not_imported(name: str, starts: Sequence[Start]) -> Goal:
    """That torch and transformers are not."""
    heavy = sorted({module for s in starts for module in s.heavy})
    found = ", ".join(heavy) or "not imported"
    return Goal(f"{name}: torch, transformers", "not imported", found, not heavy)


def _goals(found: dict[str, list[Start]]) -> list[Goal]:
    goals: list[Goal] = []
    for name, starts in found.items():
        if not name.startswith("edgelm"):
            continue
        wall = Spread.of([s.wall_s for s in starts])
        goals.append(at_most(f"{name}: whole process", MAX_S, wall, "s"))
        memory = peak(starts)
        if memory is not None:
            goals.append(at_most(f"{name}: peak memory", MAX_MB, memory, "MB", 0))
        goals.append(not_imported(name, starts))
    return goals
