"""edgelm's choice of bits on tiny_lm beside llama.cpp's own files of the same sizes.

tiny_lm is a Llama of 8 million float weights whose widths let every type of GGUF apply.

    python benchmarks/tiny_lm.py                 everything; RESULTS.md is brought up to date
    python benchmarks/tiny_lm.py --no-write      RESULTS.md stays as it is
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from _lib import bits, machine
from _lib.results import write_section

FOLDER, FILE = "tiny_lm", "eval.txt"
# type -> at most this share of its divergence
KINDS = {"q2_k": 0.6, "q3_k_m": 0.6, "iq4_xs": 0.6, "q4_k_m": 0.6}
PACKAGES = ("edgelm", "torch", "transformers", "llama-cpp-python", "gguf", "numpy")
TITLE = "tiny_lm: bits where they matter"
PIECE_CHARS = 800  # of a row: some 200 tokens
N_TOKENS = "16000"  # of its rows that calibrate, about all there are
ABOUT = (
    "tiny_lm; its held-out text in pieces of 800 characters, by turns one to calibrate on "
    "(importance matrix and sensitivities) and one to compare on, 4,096 distributions."
)


def main() -> None:
    arguments = _arguments()
    base = Path(os.environ.get("EDGELM_DATA") or machine.ROOT.parent / "shared" / "data")
    model = (arguments.data or base) / FOLDER
    if not (model / FILE).is_file():
        raise SystemExit(f"error: no {model / FILE}\nhint: --data names the folder of {FOLDER}")
    load = machine.warn_if_busy()
    state = machine.ROOT / ".state" / "benchmarks" / "tiny_lm"
    state.mkdir(parents=True, exist_ok=True)
    text = bits.section(state, "tiny_lm", _compile(model, state), KINDS, about=ABOUT)
    body = f"## {TITLE}\n\n{machine.describe(PACKAGES, [], load)}\n\n{text}"
    print(f"\n{body}\n", flush=True)
    if not arguments.no_write:
        write_section("tiny_lm bits", body)


def _compile(model: Path, state: Path) -> list[str]:
    """The arguments of every compile, whose data is written to `state`."""
    text = (model / FILE).read_text(encoding="utf-8")
    pieces = [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
    found = [str(model), "--task", "text-generation", "--no-train", "--data-kind", "text"]
    for flag, start in (("--train", 0), ("--eval", 1)):
        path = state / f"{flag[2:]}.jsonl"
        lines = (json.dumps({"text": piece}, ensure_ascii=False) for piece in pieces[start::2])
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        found += [flag, str(path)]
    found += ["--imatrix-tokens", N_TOKENS, "--eval-tokens", "4096", "--eval-answers", "1"]
    return [*found, "--max-tokens", "512"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=f"folder that holds {FOLDER}")
    parser.add_argument("--no-write", action="store_true", help="leave RESULTS.md as it is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
