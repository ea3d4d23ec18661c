"""Fine-tuning a decoder: it learns, packing changes nothing, it goes on after a kill, is merged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import CHATML, chat, chat_rows, make_chat_model, make_tokenizer
from tiny_data import write_jsonl

from edgelm.compiler import Recipe, load_recipe
from edgelm.compiler.cache import StageCache
from edgelm.compiler.chat.finetune import add_adapters
from edgelm.compiler.chat.packing import IGNORED, can_pack, collate, pack, packed_rows, single_rows
from edgelm.compiler.chat.samples import Sample
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_model
from edgelm.compiler.pipeline import plan
from edgelm.runtime.errors import DataError, ModelError, RecipeError
from edgelm.runtime.manifest import Task
from edgelm.runtime.progress import Progress

GENERATION = Task("text-generation")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("chat")
    return {
        "model": str(make_chat_model(root / "model", tied=True)),
        "task": "text-generation",
        "cache_dir": str(root / "cache"),
        "targets": ["gguf:f32"],
        "threads": 1,
        "data.train": str(write_jsonl(root / "train.jsonl", chat_rows(24))),
        "data.eval": str(write_jsonl(root / "eval.jsonl", chat_rows(6, start=100))),
        "max_tokens": 128,
        "train.epochs": 2.0,
        "train.batch_size": 2,
        "train.learning_rate": 0.03,
        "train.precision": "fp32",
        "lora.rank": 4,
    }


def recipe_of(keys: dict[str, Any], **changed: Any) -> Recipe:
    return load_recipe(None, {**keys, **{k.replace("__", "."): v for k, v in changed.items()}})


def merged(
    keys: dict[str, Any], progress: Progress | None = None, until: str = "merge", **changed: Any
) -> Context:
    """The context behind the pass `until`."""
    recipe = recipe_of(keys, **changed)
    context = Context(
        recipe, StageCache(Path(str(recipe.cache_dir))), progress or Progress("quiet")
    )
    for step in plan(recipe, None):  # type: ignore[arg-type]
        step.execute(context)
        if step.name == until:
            return context
    raise AssertionError(until)


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {k: v.float().numpy() for k, v in load_file(folder / "model.safetensors").items()}


def logits(model: Any, ids: Any, **more: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids), use_cache=False, **more).logits


def test_it_learns_and_says_how(keys):
    context = merged(keys)
    said = context.training
    assert (said["method"], said["is_packed"], said["n_truncated"]) == ("lora", True, 0)
    assert 0 < said["n_targets"] < said["n_tokens"]
    assert said["rows"] < 24
    assert said["eval_loss_after"] < 0.9 * said["eval_loss_before"]
    losses = [epoch["eval_loss"] for epoch in said["epochs"]]
    assert losses[-1] < losses[0] < said["eval_loss_before"]
    assert min(losses) == pytest.approx(said["eval_loss_after"], abs=1e-4)
    assert said["merge"]["max_abs_diff"] < 1e-4 * said["merge"]["scale"]
    assert context.task == Task(
        "text-generation",
        end_ids=(2,),
        chat=True,
        special_tokens={"eos_token": "<|im_end|>"},
    )
    assert context.text is not None
    assert (context.text.max_tokens, context.text.pad_id) == (128, 2)


def test_the_merged_directory_is_complete_and_tied(keys):
    folder = merged(keys).model_dir
    assert folder is not None
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert (folder / "chat_template.jinja").read_text() == CHATML
    assert json.loads((folder / "tokenizer_config.json").read_text()).get("pad_token") is None
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config.get("use_cache", True) is True
    found = weights(folder)
    assert "lm_head.weight" not in found
    before = weights(Path(keys["model"]))
    assert found.keys() == before.keys()
    changed = {name for name in found if not np.array_equal(found[name], before[name])}
    assert changed == {name for name in found if "proj" in name}


def test_the_loss_is_averaged_over_target_tokens(keys, tmp_path):
    """Against a plain loop over single samples."""
    import torch

    from edgelm.compiler.chat.samples import render_all

    context = merged(keys)
    assert context.chat is not None
    model = load_model(Path(keys["model"]), GENERATION, new_head=False)
    samples = render_all(context.chat.eval, make_tokenizer(), 128).samples
    total = count = 0.0
    for s in samples:
        chances = torch.log_softmax(logits(model, [s.ids])[0], dim=-1)
        for t in range(1, len(s.ids)):
            if s.targets[t]:
                total -= float(chances[t - 1, s.ids[t]])
                count += 1
    assert count == sum(s.n_targets for s in samples)
    assert context.training["eval_loss_before"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"])
def test_packed_samples_do_not_see_each_other(family, tmp_path):
    extra: dict[str, Any] = {}
    if family in ("gemma2", "gemma3_text", "mistral"):
        extra = {"sliding_window": 8}
    if family in ("gemma2", "gemma3_text", "qwen3"):
        extra["head_dim"] = 8
    folder = make_chat_model(tmp_path / "model", family=family, **extra)
    model = load_model(folder, GENERATION, new_head=False)
    rng = np.random.default_rng(0)
    lengths = (30, 3, 17, 1, 12)
    samples = [
        Sample(tuple(map(int, rng.integers(3, 300, n))), (False, *[True] * (n - 1)))
        for n in lengths
    ]
    batch = collate(packed_rows(samples, 40), pad_id=0)
    places = pack(samples, 40)
    B, T = batch["input_ids"].shape
    assert (B, T) == (2, 34)
    out = logits(model, batch["input_ids"].tolist(), position_ids=batch["position_ids"])
    for row, inside in enumerate(places):
        at = 0
        for i in inside:
            alone = logits(model, [samples[i].ids])[0]
            packed = out[row, at : at + lengths[i]]
            np.testing.assert_allclose(packed, alone, atol=2e-5 * float(alone.abs().max()))
            labels = batch["labels"][row, at : at + lengths[i]].tolist()
            assert labels == [IGNORED, *samples[i].ids[1:]]
            at += lengths[i]
        assert set(batch["labels"][row, at:].tolist()) <= {IGNORED}
    assert can_pack(model, samples)


def test_a_model_that_sees_through_packing_is_found_out(tmp_path):
    """With a cache transformers looks for no packed samples."""
    folder = make_chat_model(tmp_path / "model")
    model = load_model(folder, GENERATION, new_head=False)
    samples = [
        Sample(tuple(range(3, 19)), (True,) * 16),
        Sample(tuple(range(40, 56)), (True,) * 16),
    ]
    assert can_pack(model, samples)
    forward = model.forward

    def careless(input_ids: Any, position_ids: Any = None, **more: Any) -> Any:
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=True)

    model.forward = careless
    assert not can_pack(model, samples)


def test_rows_are_filled():
    samples = [Sample((1,) * n, (True,) * n) for n in (50, 30, 20, 60, 40, 100, 1)]
    rows = pack(samples, 100)
    assert sorted(i for row in rows for i in row) == list(range(7))
    assert [sum(len(samples[i].ids) for i in row) for row in rows] == [100, 100, 100, 1]
    batch = collate(single_rows(samples), pad_id=7)
    assert batch["attention_mask"].sum(dim=1).tolist() == [50, 30, 20, 60, 40, 100, 1]
    assert batch["input_ids"][1, 30:].unique().tolist() == [7]


def test_without_packing_it_learns_as_much(keys):
    said = merged(keys, train__packing=False, until="finetune").training
    assert (said["is_packed"], said["rows"]) == (False, 24)
    packed = merged(keys, until="finetune").training
    assert said["eval_loss_before"] == pytest.approx(packed["eval_loss_before"], rel=1e-5)
    assert said["eval_loss_after"] < 0.7 * said["eval_loss_before"]


def test_accumulation_is_a_larger_batch(keys, tmp_path):
    """Rows of unequal numbers of targets: the loss is averaged over the step, not its parts."""
    rows = [chat(f"hello {i}", "the refund takes three days " * (i % 4 + 1)) for i in range(8)]
    changed = {
        "data__train": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "train__packing": False,
        "lora__dropout": 0.0, "train__epochs": 1.0, "train__warmup": 0.0,
    }  # fmt: skip
    whole = merged(keys, **changed, train__batch_size=8).model_dir
    parts = merged(keys, **changed, train__batch_size=2, train__gradient_accumulation=4).model_dir
    again = merged(
        keys, **changed, train__batch_size=8, train__gradient_checkpointing=True
    ).model_dir
    assert whole is not None and parts is not None and again is not None
    expected, start = weights(whole), weights(Path(keys["model"]))
    for folder in (parts, again):
        assert folder != whole
        for name, value in weights(folder).items():
            moved = np.abs(expected[name] - start[name]).max()
            np.testing.assert_allclose(value, expected[name], atol=1e-3 * moved + 1e-7)


def test_all_weights(keys):
    context = merged(keys, train__method="full", train__learning_rate=0.003)
    assert context.training["method"] == "full"
    assert context.training["eval_loss_after"] < 0.8 * context.training["eval_loss_before"]
    assert context.model_dir is not None
    found, before = weights(context.model_dir), weights(Path(keys["model"]))
    assert all(not np.array_equal(found[name], before[name]) for name in found)
    assert "lm_head.weight" not in found


class Killed(Progress):
    """Ends the process at one step of the training; nothing is written any more."""

    def __init__(self, at_step: int) -> None:
        super().__init__("quiet")
        self.at_step = at_step

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        if total is not None and done == self.at_step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_training_goes_on_to_the_same_weights(keys, tmp_path):
    changed = {"train__epochs": 3.0, "lora__dropout": 0.1}
    whole = merged(keys, **changed)
    other = {**keys, "cache_dir": str(tmp_path / "cache")}
    steps = -(-whole.training["rows"] // 2)
    assert steps > 1
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]}
from test_chat_training import Killed, merged
merged({other!r}, Killed({steps + 1}), **{changed!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (partial,) = (tmp_path / "cache" / "finetune").glob(".*.partial")
    checkpoints = partial / "checkpoints"
    assert [p.name for p in checkpoints.iterdir()] == [f"checkpoint-{steps}"]
    half = checkpoints / "checkpoint-999"  # as a kill within writing leaves it
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = merged(other, **changed)
    assert resumed.training["epochs"] == whole.training["epochs"]
    assert whole.model_dir is not None and resumed.model_dir is not None
    a, b = weights(whole.model_dir), weights(resumed.model_dir)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_another_seed_gives_other_weights(keys):
    one, two = merged(keys).model_dir, merged(keys, seed=1).model_dir
    assert one is not None and two is not None
    name = "model.layers.0.mlp.up_proj.weight"
    assert not np.array_equal(weights(one)[name], weights(two)[name])


def make_adapter(folder: Path, base: str, **config: Any) -> Path:
    """By peft alone, with weights that are no zeros."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("targets", "is_tied"),
    [("all-linear", True), (["q_proj", "lm_head"], False)],
    ids=["blocks", "output"],
)
def test_an_adapter_of_peft(keys, tmp_path, targets, is_tied):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_adapter(tmp_path / "adapter", keys["model"], target_modules=targets)
    context = merged(keys, adapter=str(folder))
    assert context.training["method"] == "adapter"
    assert context.model_dir is not None
    base = AutoModelForCausalLM.from_pretrained(keys["model"], dtype="float32")
    expected = logits(PeftModel.from_pretrained(base, str(folder)).eval(), [list(range(3, 60))])
    found = logits(load_model(context.model_dir, GENERATION, new_head=False), [list(range(3, 60))])
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    config = json.loads((context.model_dir / "config.json").read_text())
    assert config["tie_word_embeddings"] is is_tied
    assert ("lm_head.weight" in weights(context.model_dir)) is not is_tied


def test_adapters_that_are_refused(keys, tmp_path):
    from safetensors.torch import load_file, save_file

    def refused(folder: Path) -> str:
        with pytest.raises(ModelError) as caught:
            merged(keys, adapter=str(folder))
        return str(caught.value)

    assert "missing, so this is no adapter" in refused(tmp_path / "no")
    other = make_chat_model(tmp_path / "other", hidden_size=48)
    assert "does not fit the model" in refused(make_adapter(tmp_path / "a", str(other)))
    fits = make_adapter(tmp_path / "b", keys["model"])
    tensors = load_file(fits / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, fits / "adapter_model.safetensors")
    assert "1 of its weights have no place or are missing" in refused(fits)
    shutil.move(fits / "adapter_model.safetensors", fits / "adapter_model.bin")
    assert "no adapter_model.safetensors in it" in refused(fits)
    config = json.loads((fits / "adapter_config.json").read_text())
    (fits / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    assert "its kind is 'IA3', only LORA is merged" in refused(fits)
    with pytest.raises(RecipeError, match="merged instead of training"):
        recipe_of(keys, adapter="x", train__method="lora")
    with pytest.raises(RecipeError, match="for text-generation"):
        recipe_of({"model": "m"}, adapter="x")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_untouched_models_keep_their_precision(keys, tmp_path, dtype):
    from safetensors.torch import load_file

    folder = make_chat_model(tmp_path / "model", dtype=dtype, tied=True)
    cache = str(tmp_path / "cache")
    context = merged(keys, model=str(folder), train__method="none", cache_dir=cache)
    assert context.model_dir is not None
    assert context.training["method"] == "none"
    assert context.training["merge"]["max_abs_diff"] == 0
    tensors = load_file(context.model_dir / "model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}
    given = load_file(folder / "model.safetensors")
    assert given.keys() == tensors.keys()
    assert all(given[name].equal(tensors[name]) for name in given)
    trained = merged(keys, model=str(folder), cache_dir=cache).model_dir
    assert trained is not None
    tensors = load_file(trained / "model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}


def test_models_without_a_template(keys, tmp_path):
    folder = make_chat_model(tmp_path / "model", template=None)
    with pytest.raises(ModelError, match="no chat template"):
        merged(keys, model=str(folder), until="prepare")
    texts = write_jsonl(
        tmp_path / "t.jsonl", [{"text": f"where is my order {i}"} for i in range(9)]
    )
    changed = {"model": str(folder), "cache_dir": str(tmp_path / "cache"), "data__eval": None}
    context = merged(keys, data__train=str(texts), until="finetune", **changed)
    assert context.task is not None
    assert not context.task.chat
    assert context.training["eval_loss_after"] < context.training["eval_loss_before"]


def test_truncation_is_reported_and_answers_cut_off_are_an_error(keys, tmp_path):
    rows = [*chat_rows(12), chat("hello " * 60, "yes"), chat("hi", "yes " * 60)]
    train = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    context = merged(keys, data__train=train, max_tokens=64, until="finetune")
    said = context.training
    assert (said["n_truncated"], said["n_dropped"]) == (2, 1)
    assert any("2 of 14 training rows are longer than 64 tokens" in n for n in context.notes)
    with pytest.raises(DataError, match="no training row has an answer within 8 tokens"):
        merged(keys, max_tokens=8, until="finetune")


def test_adapters_sit_on_the_blocks_alone(keys):
    model = load_model(Path(keys["model"]), GENERATION, new_head=False)
    adapted = add_adapters(model, recipe_of(keys))
    H, KV, F, L, r = 32, 16, 64, 2, 4
    layer = 2 * (H + H) + 2 * (H + KV) + 3 * (H + F)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == L * r * layer


def test_layers_that_are_no_linear(tmp_path):
    """GPT-2's are transposed convolutions, and its positions are learned."""
    dims = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64}
    folder = make_chat_model(tmp_path / "model", family="gpt2", tied=True, **dims)
    model = load_model(folder, GENERATION, new_head=False)
    samples = [Sample(tuple(range(i, i + 9)), (True,) * 9) for i in (3, 40)]
    assert can_pack(model, samples)
    adapted = add_adapters(model, load_recipe(None, {"model": "m", "lora.rank": 4}))
    H, F, L, r = 32, 64, 2, 4
    layer = (H + 3 * H) + (H + H) + 2 * (H + F)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == L * r * layer


def test_defaults_go_by_task():
    from edgelm.compiler.training import default_max_tokens, is_trained, settled

    chats = load_recipe(None, {"model": "m", "task": "text-generation", "data.train": "x"})
    texts = load_recipe(None, {"model": "m"})
    assert (settled(chats).epochs, settled(chats).batch_size) == (3.0, 4)
    assert (settled(texts).epochs, settled(texts).batch_size) == (8.0, 32)
    assert (settled(chats).learning_rate, settled(texts).learning_rate) == (5e-4, 2e-3)
    assert (default_max_tokens(chats), default_max_tokens(texts)) == (1024, 128)
    assert is_trained(chats)
    assert not is_trained(load_recipe(None, {"model": "m", "task": "text-generation"}))
