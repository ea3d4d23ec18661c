"""Smoke test of an installed wheel: python scripts/smoke_wheel.py VENV_WITH_THE_WHEEL

This interpreter (with the extra `compile`) makes a tiny bundle; the other environment, which holds
the wheel with the extra `onnx` only, must show its help, import lightly and predict on that bundle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("card_lost", "refund", "other")
TEXTS = {"card_lost": "i lost my card", "refund": "refund please", "other": "thanks hello"}
LIGHT = """
import sys, edgelm
from pathlib import Path
assert Path(sys.prefix) in Path(edgelm.__file__).parents, edgelm.__file__
assert not {"numpy", "torch", "transformers"} & set(sys.modules)
assert edgelm.load
assert not {"torch", "transformers"} & set(sys.modules)
"""


def run(folder: Path, *command: str | Path) -> str:
    """Run in `folder`, outside the repository, so that only what is installed can be imported."""
    line = [str(part) for part in command]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\nexit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def make_bundle(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model

    model = make_model(folder / "model", labels=LABELS)
    bundle, compiled = folder / "tiny.edgelm", [sys.executable, "-m", "edgelm", "compile", model]
    options: list[str | Path] = ["--task", "text-classification"]
    for flag, numbers in (("--train", range(10)), ("--eval", range(10, 14))):
        rows = [f"{TEXTS[label]} {i},{label}" for i in numbers for label in LABELS]
        data = folder / f"{flag.strip('-')}.csv"
        data.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
        options += [flag, data]
    options += ["--no-train", "--target", "onnx:fp32"]
    run(folder, *compiled, *options, "-o", bundle)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path, help="environment in which the wheel is installed")
    programs = parser.parse_args().venv.resolve() / ("Scripts" if os.name == "nt" else "bin")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert "predict" in run(folder, programs / "edgelm", "--help")
        run(folder, programs / "python", "-c", LIGHT)
        bundle = make_bundle(folder)
        answer = run(folder, programs / "edgelm", "predict", bundle, "i lost my card")
        assert any(label in answer for label in LABELS), answer
    sys.stdout.write(f"smoke test passed: {answer.strip()}\n")


if __name__ == "__main__":
    main()
