"""Smaller models: what a student keeps of its teacher's accuracy, and how much faster it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _lib.compiled import Compiled, compile_bundle
from _lib.data import Data, Row
from _lib.results import Goal, goals_table, table
from _lib.rounds import Spread, Worker, ratios, run_rounds

TARGETS = ("onnx:int8", "gguf:q8_0")


@dataclass(frozen=True)
class Student:
    """What is left out, and what is hoped for."""

    name: str  # of its bundle
    flags: tuple[str, ...]
    least_kept: float  # share of the teacher's accuracy
    least_gain: float  # of speed on ONNX int8, and on GGUF where `gguf_gains`
    gguf_gains: bool = True  # GGUF files keep heads as zeros


DISTIL = (Student("banking77-3-layers", ("--prune-layers", "3"), 0.98, 1.8),)
PRUNE = (
    Student("banking77-half", ("--prune-ffn", "0.5", "--prune-heads", "0.5"), 0.985, 1.5, False),
)


@dataclass(frozen=True)
class _Asked:
    name: str
    worker: Worker

    def ask(self) -> dict[str, Any]:
        return self.worker.ask()


def section(
    state: Path,
    data: Data,
    whole: Compiled,
    rows: Sequence[Row],
    students: Sequence[Student],
    extra: Sequence[str],
    *,
    rounds: int,
    threads: int,
) -> tuple[str, list[str]]:
    """The text of the section; no peers."""
    made: dict[str, Compiled] = {}
    for student in students:
        sys.stderr.write(f"compiling {student.name}\n")
        flags = [*student.flags, "--max-original-drop", "1", *extra]
        made[student.name] = compile_bundle(state, data, student.name, TARGETS, flags, fresh=False)
    file = state / "texts.json"
    file.write_text(json.dumps([text for text, _ in rows]), encoding="utf-8")
    variants = [target.replace(":", "-") for target in TARGETS]
    with ExitStack() as stack:
        contenders: list[_Asked] = []
        for name, compiled in (("teacher", whole), *made.items()):
            for variant in variants:
                options = {
                    "texts": str(file), "threads": threads, "bundle": str(compiled.bundle),
                    "variant": variant, "max_tokens": compiled.manifest.text.max_tokens,
                }  # fmt: skip
                label = f"{name} {variant}"
                worker = Worker(label, "edgelm_speed.py", options, threads=threads)
                contenders.append(_Asked(label, stack.enter_context(worker)))
        seconds = run_rounds(contenders, rounds)
    return _render(whole, made, students, seconds, len(rows), threads), []


def _render(
    whole: Compiled,
    made: dict[str, Compiled],
    students: Sequence[Student],
    seconds: dict[str, list[float]],
    n: int,
    threads: int,
) -> str:
    teacher = whole.manifest.reference["accuracy"]
    lines = [
        f"Students of one fine-tuned teacher (accuracy {teacher:.4f}), by `edgelm compile` with "
        "the flags below; evaluated on the same test texts. No choice is made on them: the last "
        f"epoch is taken. Speed: {n:,} test texts from strings to labels, {threads} threads, "
        "teacher and students in turns; gains are taken round by round against the teacher's same "
        "variant.",
        "",
    ]
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for student in students:
        compiled = made[student.name]
        lines.append(
            f"- {student.name}: `{' '.join(student.flags)}`; teach "
            f"{compiled.stages.get('teach', 0):.0f} s, shrink {compiled.stages['shrink']:.0f} s"
        )
        for variant in compiled.manifest.variants:
            accuracy = variant.metrics["accuracy"]
            size = next(v for v in whole.manifest.variants if v.name == variant.name).size_bytes
            times = seconds[f"{student.name} {variant.name}"]
            gain = ratios(seconds[f"teacher {variant.name}"], times)
            rows.append(
                [
                    f"{student.name} {variant.name}", f"{accuracy:.4f}",
                    f"{100 * accuracy / teacher:.2f} %", f"{variant.size_bytes / 1e6:.2f}",
                    f"{size / 1e6:.2f}", Spread.of([n / s for s in times]).show(0), gain.show(),
                ]
            )  # fmt: skip
            goals.append(
                Goal(
                    f"{student.name} {variant.name}: accuracy kept",
                    f">= {100 * student.least_kept:g} %",
                    f"{100 * accuracy / teacher:.2f} %",
                    accuracy / teacher >= student.least_kept,
                )
            )
            if student.gguf_gains or variant.target != "gguf":
                goals.append(
                    Goal(
                        f"{student.name} {variant.name}: faster", f">= {student.least_gain} x",
                        gain.show(), gain.median >= student.least_gain,
                    )
                )  # fmt: skip
    head = ["student", "accuracy", "of the teacher's", "MB", "teacher's MB"]
    head += ["texts/s (min-max)", "x as fast (min-max)"]
    return "\n".join([*lines, "", table(head, rows), "", goals_table(goals)])
