"""edgelm on SmolLM2-135M-Instruct (text generation), beside its peers, in one command.

Run it with the project's environment, from anywhere:

    python benchmarks/smollm2.py                 everything; RESULTS.md is brought up to date
    python benchmarks/smollm2.py decode batch    only these parts
    python benchmarks/smollm2.py --quick         few rounds, worthless figures, to see that it runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from _lib import machine
from _lib.compiled import Compiled
from _lib.results import write_section
from _lib.smollm2 import batch, conversion, decode, finetune, peers, speculate, startup, turns
from _lib.smollm2.bundle import NAME, compile_plain

TITLES = {
    "decode": "SmolLM2: tokens per second",
    "batch": "SmolLM2: a list of prompts",
    "turns": "SmolLM2: the second turn of a chat",
    "speculate": "SmolLM2: prompt lookup",
    "startup": "SmolLM2: process start to first token",
    "finetune": "SmolLM2: fine-tuning and what is kept of it",
    "gguf": "SmolLM2: Hugging Face to GGUF",
}
PACKAGES = ("edgelm", "torch", "transformers", "peft", "tokenizers", "onnxruntime")
PACKAGES += ("onnxruntime-genai", "llama-cpp-python", "gguf", "numpy")
NEED_LLAMA_CPP = ("decode", "gguf")


@dataclass(frozen=True)
class Run:
    """One run of this program."""

    state: Path
    arguments: argparse.Namespace
    made: dict[str, Compiled] = field(default_factory=dict)  # in this run

    def compiled(self) -> Compiled:
        """The untouched model's bundle."""
        if NAME not in self.made:
            extra = ["--eval-answers", "1"] if self.arguments.quick else []
            self.made[NAME] = compile_plain(self.state, extra)
        return self.made[NAME]

    @property
    def turns_of(self) -> dict[str, int]:
        """Rounds and threads, for the parts that measure in rounds."""
        return {"rounds": self.arguments.rounds, "threads": self.arguments.threads}

    def decode(self) -> tuple[str, list[str]]:
        text, said = decode.section(self.compiled(), **self.turns_of)
        return text, [peers.describe(), *said]

    def batch(self) -> tuple[str, list[str]]:
        return batch.section(self.compiled(), **self.turns_of), []

    def turns(self) -> tuple[str, list[str]]:
        return turns.section(self.compiled(), **self.turns_of), []

    def speculate(self) -> tuple[str, list[str]]:
        return speculate.section(self.compiled(), **self.turns_of), []

    def startup(self) -> tuple[str, list[str]]:
        return startup.section(self.compiled(), runs=self.arguments.runs), []

    def finetune(self) -> tuple[str, list[str]]:
        train = finetune.find_train(self.arguments.data)
        extra = ["--epochs", "0.05", "--eval-answers", "1"] if self.arguments.quick else []
        fresh = not self.arguments.reuse
        return finetune.section(self.state, train, extra, fresh=fresh), []

    def gguf(self) -> tuple[str, list[str]]:
        rounds, large = self.arguments.rounds, not self.arguments.quick
        text = conversion.section(self.state, self.compiled(), rounds=rounds, large=large)
        return text, [peers.describe()]


def main() -> None:
    arguments = _arguments()
    parts = [part for part in TITLES if part in (arguments.parts or TITLES)]
    if set(NEED_LLAMA_CPP) & set(parts):
        peers.need_llama_cpp()
    name = "smollm2-quick" if arguments.quick else "smollm2"
    run = Run(machine.ROOT / ".state" / "benchmarks" / name, arguments)
    for part in parts:
        load = machine.warn_if_busy()
        work: Callable[[], tuple[str, list[str]]] = getattr(run, part)
        text, said = work()
        body = f"## {TITLES[part]}\n\n{machine.describe(PACKAGES, said, load)}\n\n{text}"
        print(f"\n{body}\n", flush=True)
        if arguments.quick:
            sys.stderr.write("quick: RESULTS.md is left as it is\n")
        elif not arguments.no_write:
            write_section(f"smollm2 {part}", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(TITLES)}; all when left out")
    add("--data", type=Path, help="finetune: folder of train_small.jsonl")
    add("--rounds", type=int, default=7, help="of everything that is measured in turns")
    add("--threads", type=int, default=2, help="of the engines")
    add("--runs", type=int, default=10, help="of startup")
    add("--reuse", action="store_true", help="finetune: keep finished stages of an earlier run")
    add("--no-write", action="store_true", help="leave RESULTS.md as it is")
    add("--quick", action="store_true", help="few rounds, to see that it runs; writes nothing")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(TITLES))
    if unknown:  # argparse's own choices would refuse to be left out
        parser.error(f"unknown part {unknown[0]!r}, known are {', '.join(TITLES)}")
    if arguments.quick:
        arguments.rounds, arguments.runs = 1, 1
    return arguments


if __name__ == "__main__":
    main()
