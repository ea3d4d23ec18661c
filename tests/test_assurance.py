"""SECURITY-ASSURANCE.md names tests and files that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY-ASSURANCE.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, (path, name)


def test_every_named_file_exists() -> None:
    for path in re.findall(r"`((?:runtime|targets|tests|benchmarks)/[\w/.-]+\.py)`", TEXT):
        assert (ROOT / path).is_file(), path
