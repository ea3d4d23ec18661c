"""A tiny chat model the whole way: trained, merged, lowered, verified, measured, packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from tiny_data import write_jsonl

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import tiny_chat

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.passes import measure
from edgelm.runtime.manifest import Manifest, read_manifest


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("chat")
    model = tiny_chat.make_chat_model(root / "model")
    data = write_jsonl(root / "train.jsonl", tiny_chat.chat_rows(40))
    return {
        "model": str(model),
        "task": "text-generation",
        "targets": ["gguf:f32", "gguf:q8_0"],
        "output": str(root / "helper.edgelm"),
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "max_tokens": 128,
        "data.train": str(data),
        "train.epochs": 4,
        "train.learning_rate": 0.02,
        "verify.eval_tokens": 60,
        "verify.eval_answers": 12,
        "verify.limits": {"gguf:q8_0": {"max_kl": 0.1, "max_perplexity_ratio": 1.1}},
    }


@pytest.fixture(scope="module")
def bundle(overrides: dict[str, Any], monkeypatch_session: pytest.MonkeyPatch) -> Path:
    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    return compile(load_recipe(None, overrides)).path


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_the_numbers_of_the_manifest(manifest: Manifest) -> None:
    assert manifest.reference["loss"] < manifest.reference["base_loss"] - 1
    exact, eight = manifest.variants
    for variant in (exact, eight):
        parity, measured = variant.parity, variant.measured
        assert parity is not None
        assert measured is not None
        assert parity.n <= 60
        assert None not in (measured.first_token_ms, measured.memory_bytes)
        assert (measured.prompt_tokens_per_s or 0) > 0
        assert (measured.answer_tokens_per_s or 0) > 0
        assert measured.latency_ms_p50 is None
        assert len(variant.golden) == len(manifest.golden) > 2
        assert {len(row) for row in variant.golden} == {2}
        assert variant.metrics["loss"] == pytest.approx(manifest.reference["loss"], abs=0.1)
    assert exact.parity.kl_divergence < 1e-4  # type: ignore[union-attr,operator]
    assert exact.parity.gain_kept == pytest.approx(1, abs=0.01)  # type: ignore[union-attr]
    assert exact.parity.kl_divergence < eight.parity.kl_divergence  # type: ignore[union-attr,operator]


def test_report_and_card_are_of_generation(bundle: Path) -> None:
    page = Page((bundle / "report.html").read_text(encoding="utf-8"))
    assert "It answers conversations." in page.text
    assert "Fine-tuning took the evaluation loss from" in page.text
    assert "gguf-q8_0" in page.text
    card = (bundle / "card.md").read_text(encoding="utf-8")
    assert "model.stream(messages" in card
    assert "Trained with lora for 4 epochs" in card


def test_the_device_answers_as_packed(run_cli: Callable[..., Any], bundle: Path) -> None:
    run = run_cli("verify", bundle, "--threads", 1)
    assert run.code == 0
    assert "gguf-q8_0: ok: 6 of 6 golden texts are as likely as packed" in run.out
    run = run_cli("inspect", bundle)
    assert "text-generation: answers messages\nprompt and answer: 128 tokens" in run.out


def test_other_golden_numbers_are_told(
    run_cli: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.edgelm"))
    manifest = json.loads((copy / "edgelm.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["golden"][1][0] += 0.5
    (copy / "edgelm.json").write_text(json.dumps(manifest), encoding="utf-8")
    run = run_cli("verify", copy, "--threads", 1)
    assert run.code == 4
    assert "gguf-f32: FAILED: 5 of 6 golden texts" in run.out
    assert "gguf-q8_0: ok" in run.out


def test_bench_shows_the_figures_of_generation(run_cli: Callable[..., Any], bundle: Path) -> None:
    run = run_cli("bench", bundle, "--variant", "gguf-q8_0", "--threads", 1, "--seconds", 0.01)
    assert run.code == 0
    assert "answer tok/s" in run.out
    assert "texts/s" not in run.out
    run = run_cli(
        "bench", bundle, "--variant", "gguf-q8_0", "--threads", 1, "--seconds", 0.01, "--json"
    )
    assert run.rows[0]["gguf-q8_0"]["first_token_ms"] > 0


def test_a_variant_over_its_limits_stops_the_compile(
    overrides: dict[str, Any], bundle: Path
) -> None:
    before = (bundle / "edgelm.json").read_bytes()
    limits = {"gguf:q8_0": {"max_kl": 1e-9}}
    with pytest.raises(edgelm.VerificationError, match=r"mean KL divergence .* 1\.00e-09"):
        compile(load_recipe(None, {**overrides, "verify.limits": limits}))
    assert (bundle / "edgelm.json").read_bytes() == before
