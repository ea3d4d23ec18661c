"""What the benchmarks' command lines share: parts, options, and the loop that runs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from _lib import machine
from _lib.results import write_section

Part = Callable[[], tuple[str, list[str]]]  # a part's text, and what of the peers to say


def parser(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all when left out")
    add("--rounds", type=int, default=7, help="of everything that is measured in turns")
    add("--threads", type=int, default=2, help="of the engines")
    add("--runs", type=int, default=10, help="of startup")
    add("--reuse", action="store_true", help="training: keep finished stages of an earlier run")
    add("--no-write", action="store_true", help="leave RESULTS.md as it is")
    add("--quick", action="store_true", help="worthless figures, to see that it runs; no results")
    return made


def parse(parser: argparse.ArgumentParser, parts: Sequence[str]) -> argparse.Namespace:
    """The arguments; `parts` in the order in which they are run."""
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(parts))
    if unknown:  # argparse's own choices would refuse to be left out
        parser.error(f"unknown part {unknown[0]!r}, known are {', '.join(parts)}")
    arguments.parts = [part for part in parts if part in (arguments.parts or parts)]
    return arguments


def run(
    name: str,
    arguments: argparse.Namespace,
    titles: Mapping[str, str],
    packages: Sequence[str],
    program: object,
) -> None:
    """Print each part, which is a method of `program`, and bring RESULTS.md up to date."""
    for part in arguments.parts:
        load = machine.warn_if_busy()
        work: Part = getattr(program, part)
        text, said = work()
        body = f"## {titles[part]}\n\n{machine.describe(packages, said, load)}\n\n{text}"
        print(f"\n{body}\n", flush=True)
        if arguments.quick:
            sys.stderr.write("quick: RESULTS.md is left as it is\n")
        elif not arguments.no_write:
            write_section(f"{name} {part}", body)
