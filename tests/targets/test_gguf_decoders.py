"""Decoders lowered to GGUF: llama.cpp's logits and token ids against Hugging Face's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_decoders
import torch
from gguf import GGUFReader
from gguf_oracle import changed_headers, hf_logits, llama_logits, outcomes, relative, some_ids
from safetensors.torch import load_file, save_file

from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.precisions import QUANTIZED_FILE_TYPES, needs_matrix
from edgelm.targets.gguf.weights import Weights

GENERATE = Task("text-generation")
ARCHS = ("llama", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def lower(model_dir: Path, folder: Path, precision="f32", max_tokens=64):
    folder.mkdir(parents=True, exist_ok=True)
    return TARGET.lower(
        LowerRequest(model_dir, GENERATE, TextLimits(max_tokens), precision, folder)
    )


def copy_with(model_dir: Path, folder: Path, **config) -> Path:
    """The model with other values in its config.json; None removes one."""
    shutil.copytree(model_dir, folder)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | config
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """name -> the directory of a tiny model, made once."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            found[name] = tiny_decoders.make_decoder(tmp_path_factory.mktemp(name), name)
        return found[name]

    return get


@pytest.fixture(scope="session")
def written(made, tmp_path_factory):
    """name -> its model.gguf in f32, made once."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            folder = tmp_path_factory.mktemp(f"{name}-gguf")
            lower(made(name), folder)
            found[name] = folder / "model.gguf"
        return found[name]

    return get


@pytest.mark.parametrize("name", tiny_decoders.DECODERS)
def test_logits_equal_hugging_face(name, made, written):
    ids = some_ids(made(name), 48)  # six windows of the models that have one
    difference = relative(llama_logits(written(name), ids), hf_logits(made(name), ids))
    # llama.cpp looks GELU up in a table of float16 values
    assert difference < (0.01 if "gemma" in name else 1e-4)


def test_longrope_beyond_the_original_positions(made, tmp_path):
    """There the long factors hold, in both."""
    ids = some_ids(made("phi3-longrope"), 100)
    lower(made("phi3-longrope"), tmp_path, max_tokens=128)
    ours = llama_logits(tmp_path / "model.gguf", ids, n_ctx=128)
    assert relative(ours, hf_logits(made("phi3-longrope"), ids)) < 1e-4


def test_longrope_of_a_shared_context(made, written):
    """A bundle of short texts keeps the short factors in a context of any size."""
    ids = some_ids(made("phi3-longrope"), 40)
    ours = llama_logits(written("phi3-longrope"), ids, n_ctx=1024)
    assert relative(ours, hf_logits(made("phi3-longrope"), ids)) < 1e-4


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_float_types(name, stored, tmp_path):
    """Each float type of the checkpoint into each of the file; same types are copied."""
    model = tiny_decoders.make_decoder(tmp_path / "model", name, dtype=stored)
    ids = some_ids(model, 40)
    theirs = hf_logits(model, ids)
    same = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[stored]
    exact = 0.01 if name == "gemma2" else 1e-4
    for precision, lossy in (("f32", exact), ("f16", 0.03), ("bf16", 0.3)):
        lower(model, tmp_path / precision, precision)
        ours = llama_logits(tmp_path / precision / "model.gguf", ids)
        # llama.cpp rounds the other side of the product to the matrix's type
        limit = max(lossy, 0.3 if precision == "bf16" else 0.03 if precision == "f16" else exact)
        assert relative(ours, theirs) < limit, precision
    reader = GGUFReader(tmp_path / same / "model.gguf")
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    source = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    assert table.data.tobytes() == source.view(torch.uint8).numpy().tobytes()
    assert {t.tensor_type.name for t in reader.tensors if t.name.endswith("norm.weight")} == {"F32"}


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_what_is_quantized_starts_from_the_models_own_type(stored, tmp_path, monkeypatch):
    from edgelm.targets.gguf import quantize

    model = tiny_decoders.make_decoder(tmp_path / "model", "smollm", dtype=stored)
    seen = []
    real = quantize.quantize_file

    def spy(source: Path, *args, **kwargs):
        seen.append({t.tensor_type.name for t in GGUFReader(source).tensors if len(t.shape) == 2})
        real(source, *args, **kwargs)

    monkeypatch.setattr(quantize, "quantize_file", spy)
    lower(model, tmp_path / "q8_0", "q8_0")
    assert seen == [{{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[stored]}]
    tensors = load_file(model / "model.safetensors")
    save_file({k: v.float() for k, v in tensors.items()}, model / "model.safetensors")
    lower(model, tmp_path / "from-f32", "q8_0")
    files = [(tmp_path / name / "model.gguf").read_bytes() for name in ("q8_0", "from-f32")]
    assert files[0] == files[1]  # nothing was lost


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """Its rows hold whole blocks of every type."""
    dims = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    return tiny_decoders.make_decoder(tmp_path_factory.mktemp("wide"), "smollm", **dims)


@pytest.mark.parametrize("precision", [p for p in QUANTIZED_FILE_TYPES if not needs_matrix(p)])
def test_quantized_files_pass_the_check(precision, wide, tmp_path):
    lower(wide, tmp_path, precision)
    path = tmp_path / "model.gguf"
    assert read_facts(read_header(path), path).arch == "llama"
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", tiny_decoders.FAMILIES)
def test_the_header_reads_back(name, written):
    facts = read_facts(read_header(written(name)), written(name))
    assert facts.n_embd == 64 and facts.context_length == 128 and facts.arch in ARCHS
    reader = GGUFReader(written(name))
    assert f"{facts.arch}.attention.causal" not in reader.fields
    assert f"{facts.arch}.pooling_type" not in reader.fields


def test_the_wrong_order_of_rows_would_be_seen(made, tmp_path, monkeypatch):
    """The comparison of logits notices the kind of rope."""
    from edgelm.targets.gguf import writer

    monkeypatch.setattr(writer, "interleave", lambda rows, head_rows: rows)
    lower(made("smollm"), tmp_path)
    ids = some_ids(made("smollm"), 40)
    ours = llama_logits(tmp_path / "model.gguf", ids)
    assert relative(ours, hf_logits(made("smollm"), ids)) > 0.5


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("llama", {"model_type": "mamba"}, "llama, mistral, smollm3, qwen2, qwen3, gemma2"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"num_key_value_heads": 4}, "do not fit the weights"),
        ("llama", {"tie_word_embeddings": True, "num_hidden_layers": 3}, "no place for 9 of"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "layer_types": None},
         "sliding window"),
        ("mistral", {"sliding_window": 32}, "sliding window"),
        ("phi3", {"sliding_window": 32}, "sliding window"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "every fourth layer"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16"),
        ("gemma3", {"use_bidirectional_attention": True}, "looks back only"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'llama3'"),
        ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "'proportional'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
        ("llama", {"max_position_embeddings": 32}, "max_tokens is 64"),
        ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                            "beta_fast": 16}}, "beta_fast is 16"),
    ],
)  # fmt: skip
def test_what_the_graphs_cannot_compute_is_refused(name, config, says, made, tmp_path):
    model = copy_with(made(name), tmp_path / "model", **config)
    with pytest.raises(ModelError, match=says.replace("(", r"\(")) as err:
        lower(model, tmp_path / "out")
    assert "another target" in str(err.value.hint) or err.value.hint is None


def test_a_weight_without_a_place_is_refused(made, tmp_path):
    model = shutil.copytree(made("qwen3"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.bias"] = torch.zeros(64)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for 1 .*layers\.1\.self_attn\.o_proj\.bias"):
        lower(model, tmp_path / "out")


def test_older_configs(made, tmp_path):
    """rope_theta and rope_scaling at the top, as before transformers 5."""
    rope = {"type": "linear", "factor": 2.0}
    old = {"rope_parameters": "absent", "rope_theta": 1e4, "rope_scaling": rope}
    model = copy_with(made("llama-linear"), tmp_path / "model", **old)
    ids = some_ids(model, 40)
    lower(model, tmp_path / "out")
    ours = llama_logits(tmp_path / "out" / "model.gguf", ids)
    assert relative(ours, hf_logits(made("llama-linear"), ids)) < 1e-4


def test_shards(made, tmp_path):
    from transformers import AutoModelForCausalLM

    model = shutil.copytree(made("llama"), tmp_path / "model")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(made("llama")).save_pretrained(
        model, max_shard_size="200KB"
    )
    assert len(list(model.glob("*.safetensors"))) > 1
    lower(model, tmp_path / "one")
    lower(made("llama"), tmp_path / "other")
    files = [(tmp_path / name / "model.gguf").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


@pytest.mark.parametrize("broken", ["short", "garbage", "offsets", "integers", "infinite"])
def test_broken_weights(broken, made, tmp_path):
    model = shutil.copytree(made("llama"), tmp_path / "model")
    path = model / "model.safetensors"
    raw = path.read_bytes()
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    if broken == "short":
        path.write_bytes(raw[:-100])
    elif broken == "garbage":
        path.write_bytes(b"\xff" * 500)
    elif broken == "offsets":
        path.write_bytes(raw.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))
    elif broken == "integers":
        save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    else:
        tensors[name][3, 5] = float("inf")
        save_file(tensors, path)
    with pytest.raises(ModelError):
        lower(model, tmp_path / "out")


def test_weights_are_read_in_blocks_of_whole_heads(made, monkeypatch):
    from edgelm.targets.gguf import weights

    monkeypatch.setattr(weights, "_BLOCK_BYTES", 5000)
    name = "model.layers.0.self_attn.q_proj.weight"
    with Weights(made("llama")) as opened:
        blocks = list(opened.blocks(name, multiple=16))
        assert [len(block) for block in blocks] == [16] * 4
        assert (np.concatenate(blocks) == opened.read(name)).all()
        assert [len(b) for b in opened.blocks(name, skip_rows=50)] == [14]


@pytest.mark.parametrize("name", ["llama", "gemma3-pattern", "phi3-longrope"])
def test_no_changed_header_ends_the_process(name, written, tmp_path):
    assert set(outcomes(changed_headers(written(name), tmp_path))) <= {"opened", "refused"}
    assert outcomes([written(name)]) == ["opened"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"llama.attention.head_count", 0),
        (b"llama.attention.head_count_kv", 3),
        (b"llama.attention.key_length", 15),
        (b"llama.rope.dimension_count", 8),
        (b"llama.vocab_size", 2**32 - 1),
        (b"llama.block_count", 2**31),
    ],
)
def test_broken_files_are_refused(key, value, written, tmp_path):
    raw = written("smollm").read_bytes()
    at = raw.index(len(key).to_bytes(8, "little") + key) + 8 + len(key) + 4
    path = tmp_path / "broken.gguf"
    path.write_bytes(raw[:at] + value.to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(BundleError):
        read_facts(read_header(path), path)


def test_decoders_do_not_classify(made, tmp_path):
    task = Task("text-classification", ("a", "b"))
    with pytest.raises(ModelError, match="for text-classification the gguf target knows bert"):
        TARGET.lower(LowerRequest(made("llama"), task, TextLimits(60), "f32", tmp_path))
