"""edgelm on SmolLM2-135M-Instruct (text generation), beside its peers, in one command.

Run it with the project's environment, from anywhere:

    python benchmarks/smollm2.py                 everything; RESULTS.md is brought up to date
    python benchmarks/smollm2.py decode batch    only these parts
    python benchmarks/smollm2.py --quick         few rounds, worthless figures, to see that it runs
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from _lib import bits, machine, program
from _lib.compiled import Compiled
from _lib.smollm2 import batch, conversion, decode, finetune, peers, speculate, startup, turns
from _lib.smollm2.bundle import NAME, compile_plain

TITLES = {
    "decode": "SmolLM2: tokens per second",
    "batch": "SmolLM2: a list of prompts",
    "turns": "SmolLM2: the second turn of a chat",
    "speculate": "SmolLM2: prompt lookup",
    "startup": "SmolLM2: process start to first token",
    "finetune": "SmolLM2: fine-tuning and what is kept of it",
    "bits": "SmolLM2: bits where they matter, fine-tuned",
    "gguf": "SmolLM2: Hugging Face to GGUF",
}
PACKAGES = ("edgelm", "torch", "transformers", "peft", "tokenizers", "onnxruntime")
PACKAGES += ("onnxruntime-genai", "llama-cpp-python", "gguf", "numpy")
BITS = (
    "SmolLM2-135M-Instruct fine-tuned as in the part finetune, whose trained model is taken where "
    "it is there; importance matrix and sensitivities from the rows it was trained on, compared on "
    "those held out. The weights before fine-tuning came from a file of q4_1, so types with a "
    "least value a block (q4_1, q5_1, q4_k, q5_k, q2_k), which hold them nearly as they are, are "
    "left out."
)
# types that gguf:auto may choose: none with a least value a block
CENTRED = ("mxfp4", "iq4_nl", "q5_0", "q8_0", "iq3_xxs", "iq3_s", "q3_k", "iq4_xs", "q6_k")
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

    def bits(self) -> tuple[str, list[str]]:
        train = finetune.find_train(self.arguments.data)
        state, arguments = self.state / "finetune", finetune.arguments_for(train)
        more = [part for kind in CENTRED for part in ("--auto-type", kind)]
        text = bits.section(state, "bits", [*arguments, *more], {"iq4_nl": 0.4}, about=BITS)
        return text, []

    def gguf(self) -> tuple[str, list[str]]:
        rounds, large = self.arguments.rounds, not self.arguments.quick
        text = conversion.section(self.state, self.compiled(), rounds=rounds, large=large)
        return text, [peers.describe()]


def main() -> None:
    parser = program.parser(__doc__, tuple(TITLES))
    parser.add_argument("--data", type=Path, help="finetune: folder of train_small.jsonl")
    arguments = program.parse(parser, tuple(TITLES))
    if arguments.quick:
        arguments.rounds, arguments.runs = 1, 1
    if set(NEED_LLAMA_CPP) & set(arguments.parts):
        peers.need_llama_cpp()
    name = "smollm2-quick" if arguments.quick else "smollm2"
    run = Run(machine.ROOT / ".state" / "benchmarks" / name, arguments)
    program.run("smollm2", arguments, TITLES, PACKAGES, run)


if __name__ == "__main__":
    main()
