"""Startup: a whole process from `python -c` to the first token of an answer."""

from __future__ import annotations

import sys
from pathlib import Path

from _lib.compiled import Compiled
from _lib.results import Goal, goals_table, table
from _lib.rounds import Spread
from _lib.smollm2.bundle import GGUF, file_of, has_variant
from _lib.startup import Program, Start, run

TEXT = "What is the capital of France?"
MAX_S = 0.6

EDGELM = """
import edgelm
model = edgelm.load({bundle!r}, variant={variant!r})
print(next(model.stream({text!r}, max_tokens=16)).text, flush=True)
"""
LLAMA_CPP_PYTHON = """
from llama_cpp import Llama
model = Llama({file!r}, n_ctx=2048, verbose=False)
messages = [dict(role="user", content={text!r})]
for piece in model.create_chat_completion(messages, max_tokens=16, temperature=0, stream=True):
    text = piece["choices"][0]["delta"].get("content")
    if text:
        break
print(text, flush=True)
"""


def section(compiled: Compiled, *, runs: int) -> str:
    """Start each program `runs` times, in turns, after one start that is not counted."""
    programs = _programs(compiled)
    found: dict[str, list[Start]] = {program.name: [] for program in programs}
    for i in range(runs + 1):
        for program in programs:
            start = run(program)
            if i > 0:
                found[program.name].append(start)
        sys.stderr.write(f"starts {i}/{runs}\n" if i else "warm-up done\n")
    rows = [
        [
            name,
            Spread.of([s.answer_s for s in starts]).show(),
            Spread.of(_peaks(starts)).show(0),
            ", ".join(starts[0].heavy) or "neither",
            starts[0].answer,
        ]
        for name, starts in found.items()
    ]
    head = ["program", "s to the first token", "peak MB", "imports", "first token"]
    return "\n".join(
        [
            f"A new `python -c` that loads the model and answers {TEXT!r}, up to the first piece "
            f"of text on stdout, {runs} starts in turns after one that is not counted (so files "
            "are in the page cache): median (min-max). Peak MB: VmHWM in 10^6 bytes, the mapped "
            "model file included. Imports: whether torch or transformers were loaded.",
            "",
            table(head, rows),
            "",
            goals_table(_goals(found)),
        ]
    )


def _programs(compiled: Compiled) -> list[Program]:
    variants = [f"gguf-{precision}" for precision in GGUF]
    if has_variant(compiled, "onnx-int4"):
        variants.append("onnx-int4")
    programs = [
        Program(
            f"edgelm {variant}",
            sys.executable,
            EDGELM.format(bundle=str(compiled.bundle), variant=variant, text=TEXT),
        )
        for variant in variants
    ]
    file: Path = file_of(compiled, variants[0])
    code = LLAMA_CPP_PYTHON.format(file=str(file), text=TEXT)
    return [*programs, Program(f"llama-cpp-python {GGUF[0]}", sys.executable, code)]


def _peaks(starts: list[Start]) -> list[float]:
    return [s.peak_mb for s in starts if s.peak_mb is not None] or [0.0]


def _goals(found: dict[str, list[Start]]) -> list[Goal]:
    goals: list[Goal] = []
    for name, starts in found.items():
        if not name.startswith("edgelm"):
            continue
        first = Spread.of([s.answer_s for s in starts])
        what = f"{name}: first token"
        goals.append(Goal(what, f"<= {MAX_S} s", f"{first.show()} s", first.median <= MAX_S))
        heavy = sorted({module for s in starts for module in s.heavy})
        found_heavy = ", ".join(heavy) or "not imported"
        what = f"{name}: torch, transformers"
        goals.append(Goal(what, "not imported", found_heavy, not heavy))
    return goals
