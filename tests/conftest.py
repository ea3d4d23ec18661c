"""Bundles that several tests read; each is compiled once a session from a tiny model."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tiny_data import labelled_rows, write_csv

# no test fails because the machine is busy
settings.register_profile("edgelm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgelm")


@dataclass(frozen=True)
class Run:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """`run_cli("predict", bundle, "hi", stdin=b"")`: the whole command line, in this process."""
    from edgelm.__main__ import main

    def run(*args: object, stdin: bytes = b"") -> Run:
        monkeypatch.setattr(sys, "argv", ["edgelm", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert isinstance(code, int)
        assert "Traceback" not in said.err
        return Run(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    """pytest's monkeypatch for as long as the session lasts."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def compile_tiny(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Compile a tiny model: `compile_tiny("name", "bert", **recipe overrides)` -> bundle."""
    pytest.importorskip("torch")
    import tiny

    from edgelm.compiler import compile, load_recipe
    from edgelm.compiler.passes import measure

    monkeypatch_session.setattr(measure, "SECONDS", 0.02)  # the figures are not looked at
    root = tmp_path_factory.mktemp("bundles")

    def make(
        name: str, family: str = "bert", model: dict[str, Any] | None = None, **keys: Any
    ) -> Path:
        folder = tiny.make_model(root / f"{name}-model", family, **(model or {}))
        overrides = {
            "model": str(folder),
            "output": str(root / f"{name}.edgelm"),
            "cache_dir": str(root / "cache"),
            "threads": 1,
            **{key.replace("__", "."): value for key, value in keys.items()},
        }
        return compile(load_recipe(None, overrides)).path

    return make


@pytest.fixture(scope="session")
def classifier(compile_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-label classifier, not trained, as onnx-fp32, onnx-int8 and gguf-f16."""
    data = write_csv(tmp_path_factory.mktemp("data") / "eval.csv", labelled_rows())
    return compile_tiny(
        "classifier",
        train__method="none",
        data__eval=str(data),
        targets=["onnx:fp32", "onnx:int8", "gguf:f16"],
        verify__min_agreement=0.5,
        verify__max_kl=1.0,
        verify__max_drop=0.5,
    )


@pytest.fixture(scope="session")
def embedder(compile_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean-pooled, normalized embeddings, as onnx-fp32 and gguf-f32."""
    data = write_csv(tmp_path_factory.mktemp("data") / "texts.csv", labelled_rows())
    return compile_tiny(
        "embedder",
        model={"labels": None},
        task="feature-extraction",
        normalize=True,
        data__eval=str(data),
        targets=["onnx:fp32", "gguf:f32"],
    )


@pytest.fixture(scope="session")
def talker(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch
) -> Path:
    """A chat model, not trained, as gguf-f32, gguf-q8_0 and onnx-fp32."""
    pytest.importorskip("torch")
    from tiny_decoders import make_decoder

    from edgelm.compiler import compile, load_recipe
    from edgelm.compiler.passes import measure

    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    root = tmp_path_factory.mktemp("talker")
    rows = [
        [
            {"role": "user", "content": f"where is my parcel {i}"},
            {"role": "assistant", "content": f"please cancel order {i}; the refund is late"},
        ]
        for i in range(6)
    ]
    lines = [json.dumps({"messages": row}) + "\n" for row in rows]
    (root / "eval.jsonl").write_text("".join(lines), encoding="utf-8")
    overrides = {
        "model": str(make_decoder(root / "model", "qwen2")),
        "task": "text-generation",
        "train.method": "none",
        "data.eval": str(root / "eval.jsonl"),
        "targets": ["gguf:f32", "gguf:q8_0", "onnx:fp32"],
        "verify.min_agreement": 0.0,  # the model's weights are random
        "output": str(root / "talker.edgelm"),
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "max_tokens": 128,
        "verify.eval_answers": 6,
    }
    return compile(load_recipe(None, overrides)).path
