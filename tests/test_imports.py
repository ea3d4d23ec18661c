"""The import rule between the houses, the light start, and the line budget of a file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSES = ("compiler", "runtime", "targets")
HEAVY = (
    "numpy",
    "tokenizers",
    "onnxruntime",
    "llama_cpp",
    "onnx",
    "gguf",
    "pyarrow",
    "torch",
    "transformers",
    "peft",
    "datasets",
)
MAX_LINES = 500


def loaded_by(code: str) -> set[str]:
    """The heavy packages in sys.modules after `code` ran in a fresh interpreter."""
    code += (
        f"\nimport json, sys\nprint('\\n' + json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(json.loads(run.stdout.splitlines()[-1]))


def test_import_edgelm_is_light() -> None:
    assert loaded_by("import edgelm; edgelm.__version__") == set()


def test_help_is_light() -> None:
    code = """
import sys
from edgelm.__main__ import main
sys.argv = ["edgelm", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded_by(code) == set()


def test_loading_and_predicting_needs_no_compiler_package() -> None:
    # The errors and the model are what an app imports; engines load with a bundle.
    heavy = loaded_by("from edgelm import EdgelmError, Model, load")
    assert heavy <= {"numpy", "tokenizers"}


def test_the_web_process_of_the_server_loads_no_engine() -> None:
    pytest.importorskip("uvicorn")
    assert loaded_by("import edgelm.runtime.serve.server") == set()


def sources(*folders: str) -> list[Path]:
    """Python files under the folders; hidden folders hold other people's environments."""
    found = []
    for top, below, names in (step for folder in folders for step in os.walk(ROOT / folder)):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(top, name) for name in names if name.endswith(".py")]
    return sorted(found)


def imports(path: Path, *, in_functions: bool) -> Iterator[str]:
    """Dotted names that the file imports when it runs; `if TYPE_CHECKING:` is left out."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif in_functions or not isinstance(node, functions):
            waiting.extend(ast.iter_child_nodes(node))


def offenders(folder: str, banned: tuple[str, ...], *, in_functions: bool) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imports(path, in_functions=in_functions)
        if any(name == one or name.startswith(one + ".") for one in banned)
    ]


@pytest.mark.parametrize(
    ("folder", "banned", "in_functions"),
    [
        ("runtime", ("edgelm.compiler", "edgelm.targets"), False),
        ("runtime", ("torch", "transformers", "peft", "datasets"), True),
        ("targets", ("edgelm.compiler",), True),
        *((folder, HOUSES, True) for folder in (*HOUSES, "tests", "samples", "benchmarks")),
    ],
)
def test_import_rule(folder: str, banned: tuple[str, ...], in_functions: bool) -> None:
    assert offenders(folder, banned, in_functions=in_functions) == []


def test_engines_import_no_compile_time_package() -> None:
    """A target's run-time half must work where the extra `compile` is missing."""
    banned = ("torch", "transformers", "peft", "onnx", "onnxscript", "gguf")
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("targets")
        if path.name in ("__init__.py", "base.py", "engine.py")
        for name in imports(path, in_functions=False)
        if name.partition(".")[0] in banned
    ]
    assert found == []


def test_no_file_is_too_long() -> None:
    files = sources(*HOUSES, "src", "tests", "samples", "scripts", "benchmarks")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES} == {}
