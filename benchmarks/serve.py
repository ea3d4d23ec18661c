"""`edgelm serve` under load, on the banking77 bundle of banking77.py.

python benchmarks/serve.py                      everything; RESULTS.md is brought up to date
python benchmarks/serve.py throughput           single-text requests beside FastAPI
python benchmarks/serve.py overload             2, 5 and 10 times as much as can be answered
python benchmarks/serve.py --bundle DIR overload      a bundle of your own
python benchmarks/serve.py --quick              worthless figures, to see that it runs
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from _lib import machine, program, quality, served
from _lib.compiled import NAME, Compiled, drop_lowered, is_current
from _lib.data import Data, find_data, read_rows

from edgelm.runtime.manifest import read_manifest

TITLES = {
    "throughput": "serve: classification over HTTP",
    "overload": "serve: more than it can answer",
}
PACKAGES = ("edgelm", "starlette", "uvicorn", "httptools", "uvloop", "onnxruntime", "tokenizers")
QUICK_TEXTS = 200


@dataclass(frozen=True)
class Run:
    """One run of this program."""

    state: Path
    data: Data
    arguments: argparse.Namespace

    def compiled(self) -> Compiled:
        """The bundle of banking77.py, lowered by the code as it stands; or one that was named."""
        bundle: Path | None = self.arguments.bundle
        if bundle is not None:
            return Compiled(bundle, self.state / "cache", read_manifest(bundle), {}, 0.0, True)
        if not is_current(self.state, NAME):
            drop_lowered(self.state)
        return quality.measure(self.state, self.data, [], fresh=False)

    def throughput(self) -> tuple[str, list[str]]:
        arguments = self.arguments
        rows = read_rows(self.data.test)[: arguments.texts]
        return served.throughput(
            self.state,
            self.compiled(),
            rows,
            rounds=arguments.rounds,
            threads=arguments.threads,
        )

    def overload(self) -> tuple[str, list[str]]:
        arguments = self.arguments
        rows = read_rows(self.data.test)[: arguments.texts]
        text = served.overload(
            self.state,
            self.compiled(),
            rows,
            duration_s=arguments.duration,
            threads=arguments.threads,
        )
        return text, []


def main() -> None:
    parser = program.parser(__doc__, tuple(TITLES))
    parser.add_argument("--data", type=Path, help="folder of train.csv and test.csv")
    parser.add_argument("--bundle", type=Path, help="overload: of this bundle, for its onnx-int8")
    parser.add_argument("--texts", type=int, help="only so many of the test texts")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each overload")
    arguments = program.parse(parser, tuple(TITLES))
    if arguments.quick:
        arguments.rounds, arguments.duration, arguments.texts = 2, 2.0, QUICK_TEXTS
    state = machine.ROOT / ".state" / "benchmarks" / "banking77"
    run = Run(state, find_data(arguments.data), arguments)
    program.run("serve", arguments, TITLES, PACKAGES, run)


if __name__ == "__main__":
    main()
