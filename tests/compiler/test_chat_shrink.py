"""A decoder's student is smaller, learned from it on the assistant's tokens, and is held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import torch
from safetensors.numpy import load_file
from tiny_data import write_jsonl

from edgelm.compiler import compile, load_recipe
from edgelm.compiler.chat.drawn import drawn_rows
from edgelm.compiler.chat.packing import collate
from edgelm.compiler.distil import teacher
from edgelm.compiler.hf import load_model
from edgelm.compiler.passes import measure
from edgelm.runtime.errors import ModelError, RecipeError, VerificationError
from edgelm.runtime.manifest import Manifest, Task
from edgelm.runtime.progress import Progress


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(measure, "SECONDS", 0.02)
    dims = dict(head_dim=16, num_attention_heads=2, num_key_value_heads=2)
    return {
        "model": str(tiny_chat.make_chat_model(tmp_path / "model", num_hidden_layers=3, **dims)),
        "task": "text-generation",
        "targets": ["gguf:f32"],
        "output": str(tmp_path / "small.edgelm"),
        "cache_dir": str(tmp_path / "cache"),
        "threads": 1,
        "max_tokens": 128,
        "data.train": str(write_jsonl(tmp_path / "train.jsonl", tiny_chat.chat_rows(16))),
        "data.eval": str(write_jsonl(tmp_path / "eval.jsonl", tiny_chat.chat_rows(6, start=100))),
        "train.method": "none",
        "train.precision": "fp32",
        "verify.eval_tokens": 40,
        "verify.eval_answers": 4,
        "prune.layers": 1,
        "prune.ffn": 0.5,
        "prune.heads": 1,
        "distil.epochs": 3.0,
        "distil.learning_rate": 3e-3,
        "distil.max_drop": 1e6,
    }


def compiled(keys: dict[str, Any], progress: Progress | None = None) -> Manifest:
    return compile(load_recipe(None, keys), progress).manifest


class Interrupting(Progress):
    """Ctrl-C at the second batch of the teacher."""

    def __init__(self) -> None:
        super().__init__("quiet")
        self.is_over = False

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        if done == 2 and not self.is_over:
            self.is_over = True
            raise KeyboardInterrupt


def test_a_student_takes_the_teachers_place(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Also when the teacher was interrupted: what it has answered is not asked again."""
    from edgelm.compiler.chat import student

    monkeypatch.setattr(teacher, "SAVED_EVERY", 1)
    monkeypatch.setattr(student, "BATCHES", student.BatchLimits(4, 1024))
    with pytest.raises(KeyboardInterrupt):
        compiled(keys, Interrupting())
    (index,) = Path(keys["cache_dir"]).glob("teach/.*.partial/answers/teacher.json")
    assert json.loads(index.read_text())["done"] == 1
    keys |= {"targets": ["gguf:f32", "gguf:q8_0", "onnx:fp32"], "prune.layer_choice": "measured"}
    few = {"gguf:q8_0": {"min_agreement": 0.8, "max_kl": 0.1}}  # of 40 tokens
    manifest = compiled(keys | {"verify.limits": few})
    exact, eight, onnx = manifest.variants
    for variant in (exact, onnx):
        assert variant.parity is not None and variant.parity.kl_divergence < 1e-4  # type: ignore[operator]
    assert eight.parity is not None and eight.parity.kl_divergence < 0.1  # type: ignore[operator]
    (folder,) = (Path(keys["cache_dir"]) / "shrink").glob("[!.]*")
    config = json.loads((folder / "model" / "config.json").read_text())
    wanted = {"num_hidden_layers": 2, "num_key_value_heads": 1, "num_attention_heads": 1}
    wanted |= {"head_dim": 16, "intermediate_size": 32, "use_cache": True}
    assert {key: config[key] for key in wanted} == wanted
    said = json.loads((folder / "history.json").read_text())
    losses = [epoch["loss"] for epoch in said["epochs"]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert manifest.original["perplexity"] > 1
    assert manifest.reference["perplexity"] != manifest.original["perplexity"]
    page = (Path(keys["output"]) / "report.html").read_text(encoding="utf-8")
    assert "original" in page
    (changes,) = Path(keys["cache_dir"]).glob("teach/[!.]*/layers.json")
    found = json.loads(changes.read_text())
    assert f"{sorted(sorted(range(3), key=lambda i: found[i])[1:])} are kept" in page


def test_a_student_that_lost_too_much_is_refused(keys: dict[str, Any]):
    """One that learned nothing, of a model that was trained to answer."""
    keys |= {"train.method": "full", "train.epochs": 6.0, "train.learning_rate": 0.01}
    keys |= {"distil.epochs": 0.1, "distil.learning_rate": 1e-8, "distil.max_drop": None}
    with pytest.raises(VerificationError, match=r"before it was made smaller, the limit is 1\.25"):
        compiled(keys)


def test_another_checkpoint(keys: dict[str, Any], tmp_path: Path):
    """The student that is its own teacher has nothing to learn."""
    keys |= {f"prune.{part}": None for part in ("layers", "ffn", "heads")}
    keys |= {"distil.label_weight": 0.0, "distil.direction": "reverse", "distil.max_drop": 1e-3}
    keys |= {"distil.epochs": 1.0, "distil.learning_rate": 1e-8}
    manifest = compiled(keys | {"distil.student": keys["model"]})
    before, after = manifest.original["perplexity"], manifest.reference["perplexity"]
    assert after == pytest.approx(before, rel=1e-4)
    other = tiny_chat.make_chat_model(tmp_path / "other", vocab_size=500)
    with pytest.raises(ModelError, match="it has 500 tokens"):
        compiled(keys | {"distil.student": str(other)})


def test_a_student_learns_on_its_own_answers(keys: dict[str, Any]):
    """And what an interrupted training goes on to is the same."""
    keys |= {"distil.samples": 0.7, "distil.direction": "reverse", "prune.heads": None}
    compiled(keys)
    (folder,) = Path(keys["cache_dir"]).glob("shrink/[!.]*")
    losses = [e["loss"] for e in json.loads((folder / "history.json").read_text())["epochs"]]
    assert losses[-1] < losses[0]
    weights = load_file(folder / "model" / "model.safetensors")
    Path(keys["cache_dir"], "shrink").rename(Path(keys["cache_dir"], "undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        compile(load_recipe(None, keys), InterruptingTraining())
    assert list(Path(keys["cache_dir"]).glob("shrink/.*.partial/step-1/checkpoints/checkpoint-4"))
    compiled(keys)
    (folder,) = Path(keys["cache_dir"]).glob("shrink/[!.]*")
    again = load_file(folder / "model" / "model.safetensors")
    assert all((again[name] == value).all() for name, value in weights.items())


class InterruptingTraining(Progress):
    """Ctrl-C in the second of three epochs of 4 steps."""

    def __init__(self) -> None:
        super().__init__("quiet")

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        if (done, total) == (6, 12):
            raise KeyboardInterrupt


def test_rows_that_a_model_draws(tmp_path: Path):
    """Prompts stay, answers are those of a loop over the model's own distributions."""
    folder = tiny_chat.make_chat_model(tmp_path / "model")
    model = load_model(folder, Task(kind="text-generation"), new_head=False)
    model.train()
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, 6, -100, -100, 9, 10]},
        {"input_ids": [20, 21, 22, 23, 24, 25], "labels": [-100, -100, 22, 23, 24, 25]},
    ]
    options: dict[str, Any] = {"end_ids": (2, 40), "pad_id": 0, "max_tokens": 64}
    torch.manual_seed(3)
    first = drawn_rows(model, collate(rows, 0), **options)
    torch.manual_seed(3)
    again = drawn_rows(model, collate(rows, 0), **options)
    assert first == again and model.training
    for row, prompt in zip(first, ([5, 6, 7, 8], [20, 21]), strict=True):
        answer = row["input_ids"][len(prompt) :]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [-100] * len(prompt) + answer
        assert 1 <= len(answer) <= 4 and not set(answer[:-1]) & {2, 40}
    model.eval()
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([[20, 21]])).logits[0, -1].softmax(-1)
    many = [{"input_ids": [20, 21, 22], "labels": [-100, -100, 22]}] * 4000
    tokens = [row["input_ids"][2] for row in drawn_rows(model, collate(many, 0), **options)]
    shares = torch.bincount(torch.tensor(tokens), minlength=len(chances)) / len(tokens)
    assert float((shares - chances).abs().max()) < 0.03
    assert shares.count_nonzero() > 50  # of a nearly flat distribution, so of all tokens


def test_rules(keys: dict[str, Any]):
    for changed, says in (
        ({"distil.unlabelled": "x.txt"}, "is for encoders"),
        ({"distil.hidden_weight": 0.5}, "hidden states are not kept"),
        ({"distil.relation_weight": 0.5}, "is for encoders"),
        ({"distil.samples": 1.5}, "must be 0 to 1"),
        ({"task": "feature-extraction", "distil.samples": 0.5}, "is for text-generation"),
        ({"distil.max_drop": -0.1}, "must be 0 or more"),
        ({"task": "feature-extraction", "distil.direction": "reverse"}, "is for text-generation"),
        ({"task": "feature-extraction", "distil.max_drop": 1.5}, "must be 0 to 1"),
    ):
        with pytest.raises(RecipeError, match=says):
            load_recipe(None, {**keys, **changed})
