"""Startup: a whole process from `python -c` to the first token of an answer."""

from __future__ import annotations

import sys

from _lib.compiled import Compiled
from _lib.results import Goal, at_most, report
from _lib.rounds import Spread
from _lib.smollm2.bundle import GGUF, GGUF_VARIANTS, file_of, has_variant
from _lib.startup import (
    MEANT,
    Program,
    Start,
    edgelm,
    not_imported,
    show_heavy,
    show_peak,
    start_in_turns,
)

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
    """From Python's start to the first piece of an answer."""
    found = start_in_turns(_programs(compiled), runs)
    rows = [
        [
            name,
            Spread.of([s.answer_s for s in starts]).show(),
            show_peak(starts),
            show_heavy(starts),
            starts[0].answer,
        ]
        for name, starts in found.items()
    ]
    said = (
        f"A new `python -c` that loads the model and answers {TEXT!r}, up to the first piece of "
        f"text on stdout, {runs} starts in turns after one that is not counted (so files are in "
        f"the page cache): median (min-max). {MEANT}"
    )
    head = ["program", "s to the first token", "peak MB", "imports", "first token"]
    return report([said], head, rows, _goals(found))


def _programs(compiled: Compiled) -> list[Program]:
    variants = [v for v in (*GGUF_VARIANTS, "onnx-int4") if has_variant(compiled, v)]
    code = LLAMA_CPP_PYTHON.format(file=str(file_of(compiled, GGUF_VARIANTS[0])), text=TEXT)
    return [
        *(edgelm(compiled, variant, EDGELM, TEXT) for variant in variants),
        Program(f"llama-cpp-python {GGUF[0]}", sys.executable, code),
    ]


def _goals(found: dict[str, list[Start]]) -> list[Goal]:
    goals: list[Goal] = []
    for name, starts in found.items():
        if name.startswith("edgelm"):
            first = Spread.of([s.answer_s for s in starts])
            goals.append(at_most(f"{name}: first token", MAX_S, first, "s"))
            goals.append(not_imported(name, starts))
    return goals
