"""edgelm on banking77 (77 bank-support intents), beside its peers, in one command.

Run it with the project's environment, from anywhere:

    python benchmarks/banking77.py                  everything; RESULTS.md is brought up to date
    python benchmarks/banking77.py speed startup    only these parts
    python benchmarks/banking77.py --quick          tiny, worthless figures, to see that it runs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _lib import (
    budget,
    graph,
    machine,
    program,
    quality,
    recovery,
    shrink,
    speed,
    startup,
    training,
)
from _lib.compiled import NAME, Compiled, drop_lowered, is_current
from _lib.data import Data, find_data, read_rows, write_subset
from _lib.rounds import OPENVINO_PYTHON, PEER_PYTHON, need_peers

TITLES = {
    "quality": "banking77: quality and compile time",
    "speed": "banking77: texts per second",
    "graph": "banking77: the graph, by itself",
    "startup": "banking77: process start to first prediction",
    "training": "banking77: seconds an epoch",
    "distil": "banking77: a student of fewer layers",
    "prune": "banking77: half of the columns and heads",
    "recovery": "banking77: 4 bits, recovered",
    "budget": "banking77: the best variant within a budget",
}
PACKAGES = ("edgelm", "torch", "transformers", "peft", "tokenizers", "onnxruntime")
PACKAGES += ("onnx", "llama-cpp-python", "numpy")
QUICK_TRAIN, QUICK_TEST = 256, 64


@dataclass(frozen=True)
class Run:
    """One run of this program."""

    state: Path
    data: Data
    arguments: argparse.Namespace
    made: dict[str, Compiled] = field(default_factory=dict)  # in this run

    @property
    def extra(self) -> list[str]:
        """Further options of `edgelm compile`."""
        return ["--epochs", "1"] if self.arguments.quick else []

    def compiled(self) -> Compiled:
        """The bundle, lowered by the code as it stands; a training of an earlier run is kept."""
        if NAME not in self.made:
            if not is_current(self.state, NAME):
                drop_lowered(self.state)
            self.made[NAME] = quality.measure(self.state, self.data, self.extra, fresh=False)
        return self.made[NAME]

    def quality(self) -> tuple[str, list[str]]:
        fresh = not self.arguments.reuse
        compiled = quality.measure(self.state, self.data, self.extra, fresh=fresh)
        self.made[NAME] = compiled
        return quality.section(compiled), []

    def speed(self) -> tuple[str, list[str]]:
        return speed.section(
            self.state,
            self.compiled(),
            read_rows(self.data.test),
            rounds=self.arguments.rounds,
            threads=self.arguments.threads,
            scan_texts=self.arguments.scan_texts,
        )

    def graph(self) -> tuple[str, list[str]]:
        return graph.section(
            self.state,
            self.compiled(),
            self.data,
            read_rows(self.data.test),
            rounds=self.arguments.rounds,
            threads=self.arguments.threads,
        )

    def startup(self) -> tuple[str, list[str]]:
        return startup.section(self.state, self.compiled(), runs=self.arguments.runs), []

    def training(self) -> tuple[str, list[str]]:
        n_texts, rounds = self.arguments.train_texts, self.arguments.train_rounds
        return training.section(self.state, self.data, n_texts=n_texts, rounds=rounds), []

    def distil(self) -> tuple[str, list[str]]:
        return self._shrunk(shrink.DISTIL)

    def prune(self) -> tuple[str, list[str]]:
        return self._shrunk(shrink.PRUNE)

    def recovery(self) -> tuple[str, list[str]]:
        return recovery.section(self.state, self.data, self.extra), []

    def budget(self) -> tuple[str, list[str]]:
        return budget.section(self.state, self.data, self.extra), []

    def _shrunk(self, students: Sequence[shrink.Student]) -> tuple[str, list[str]]:
        quick = ["--distil-epochs", "1"] if self.arguments.quick else []
        return shrink.section(
            self.state,
            self.data,
            self.compiled(),
            read_rows(self.data.test),
            students,
            [*self.extra, *quick],
            rounds=self.arguments.rounds,
            threads=self.arguments.threads,
        )


def main() -> None:
    parser = program.parser(__doc__, tuple(TITLES))
    add = parser.add_argument
    add("--data", type=Path, help="folder of train.csv and test.csv")
    add("--scan-texts", type=int, default=1024, help="texts to find the best batch size with")
    add("--train-texts", type=int, default=2000, help="of training")
    add("--train-rounds", type=int, default=3, help="of training")
    arguments = program.parse(parser, tuple(TITLES))
    if arguments.quick:
        arguments.rounds, arguments.runs, arguments.train_rounds = 2, 2, 1
        arguments.train_texts, arguments.scan_texts = 256, 32
    if {"speed", "startup"} & set(arguments.parts):
        need_peers()
    if "graph" in arguments.parts:
        need_peers(PEER_PYTHON, OPENVINO_PYTHON)
    data = find_data(arguments.data)
    state = machine.ROOT / ".state" / "benchmarks" / ("quick" if arguments.quick else "banking77")
    if arguments.quick:
        data = Data(
            write_subset(data.train, state / "train.csv", QUICK_TRAIN),
            write_subset(data.test, state / "test.csv", QUICK_TEST),
        )
    program.run("banking77", arguments, TITLES, PACKAGES, Run(state, data, arguments))


if __name__ == "__main__":
    main()
