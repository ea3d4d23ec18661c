"""`gguf.split_size_mb`: a bundle whose GGUF model lies in several files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_jsonl

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import tiny_chat

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.passes import measure
from edgelm.runtime.errors import RecipeError, TamperedError
from edgelm.runtime.manifest import read_manifest

LOOSE = {"max_kl": 1.0, "max_kl_p999": 9.0, "max_perplexity_ratio": 9.0, "min_agreement": 0.1}


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch
) -> Path:
    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    root = tmp_path_factory.mktemp("shards")
    sizes = dict(hidden_size=256, intermediate_size=512)
    overrides = {
        "model": str(tiny_chat.make_chat_model(root / "model", **sizes)),
        "task": "text-generation",
        "targets": ["gguf:f32", "gguf:q8_0"],
        "output": str(root / "out.edgelm"),
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "max_tokens": 128,
        "train.method": "none",
        "data.eval": str(write_jsonl(root / "eval.jsonl", tiny_chat.chat_rows(6))),
        "verify.eval_tokens": 60,
        "verify.eval_answers": 2,
        "verify.limits": {"gguf:q8_0": LOOSE},
        "gguf.split_size_mb": 2,
    }
    return compile(load_recipe(None, overrides)).path


def test_each_file_is_in_the_manifest(bundle: Path) -> None:
    large, small = read_manifest(bundle).variants
    names = [Path(f.path).name for f in large.files]
    count = len(names)
    assert count > 2
    assert names == [f"model-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert [Path(f.path).name for f in small.files] == ["model.gguf"]
    on_disk = [path.stat().st_size for path in (bundle / "variants/gguf-f32").iterdir()]
    assert large.size_bytes == sum(on_disk) == large.measured.size_bytes  # type: ignore[union-attr]
    assert max(on_disk) <= 2_000_000 < large.size_bytes
    assert large.parity is not None
    assert large.parity.kl_divergence < 1e-4  # type: ignore[operator]


def test_the_commands_count_all_files(run_cli: Callable[..., Any], bundle: Path) -> None:
    size_mb = f"{read_manifest(bundle).variants[0].size_bytes / 1e6:.2f}"
    run = run_cli("inspect", bundle)
    assert run.code == 0 and size_mb in run.out
    run = run_cli("bench", bundle, "--variant", "gguf-f32", "--threads", 1, "--seconds", 0.01)
    assert run.code == 0 and size_mb in run.out
    run = run_cli("verify", bundle, "--threads", 1)
    assert run.code == 0 and "gguf-f32: ok" in run.out


def test_a_file_that_is_missing_or_changed_is_told(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.edgelm"))
    path = sorted((copy / "variants/gguf-f32").iterdir())[1]
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(TamperedError, match=r"00002-of-\d+\.gguf"):
        edgelm.load(copy, variant="gguf-f32", threads=1)
    path.unlink()
    with pytest.raises(TamperedError, match=r"00002-of-\d+\.gguf"):
        edgelm.load(copy, variant="gguf-f32", threads=1)
    with edgelm.load(copy, variant="gguf-q8_0", threads=1) as model:
        assert model.predict("where is my order", max_tokens=2)


def test_the_size_has_a_rule() -> None:
    with pytest.raises(RecipeError, match=r"gguf\.split_size_mb: 0: must be at least 1"):
        load_recipe(None, {"model": "m", "gguf.split_size_mb": 0})
