"""One server of three tiny models for the tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx
    from serving import Served

if any(find_spec(name) is None for name in ("starlette", "uvicorn", "httpx", "openai")):
    collect_ignore_glob = ["test_*.py"]

MODELS = ("classifier", "embedder", "talker")


@pytest.fixture(scope="session")
def served(
    classifier: Path, embedder: Path, talker: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Answers everyone; bodies up to 64 KiB."""
    from serving import serving, write_config

    models = [
        {"path": str(path), "name": name, "threads": 1, "variant": variant}
        for name, path, variant in (
            ("classifier", classifier, "onnx-fp32"),
            ("embedder", embedder, "onnx-fp32"),
            ("talker", talker, "gguf-f32"),
        )
    ]
    file = tmp_path_factory.mktemp("serve") / "serve.yaml"
    config = write_config(file, models=models, body_bytes=65_536, max_inputs=64)
    with serving("--config", config, "--no-auth", ready=MODELS) as found:
        yield found


@pytest.fixture(scope="session")
def http(served: Served) -> Iterator[httpx.Client]:
    """A client of it."""
    from serving import client_of

    with client_of(served) as client:
        yield client
