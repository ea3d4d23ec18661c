"""A student takes its teacher's place: it is smaller, learned from it, and is held to it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.numpy import load_file
from tiny_data import labelled_rows, write_csv

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.distil import relations
from edgelm.compiler.hf import load_model, load_tokenizer, reference_outputs
from edgelm.compiler.passes import measure
from edgelm.compiler.passes.shrink import epochs_of_step
from edgelm.runtime.errors import ModelError, RecipeError, VerificationError
from edgelm.runtime.manifest import Manifest, Task
from edgelm.runtime.progress import Progress

LABELS = ("card_lost", "refund", "other")
TASK = Task(kind="text-classification", labels=LABELS, problem="single_label")


def answered(folder: Path, texts: list[str]) -> list[tuple[str, str]]:
    """The texts with the labels that the model gives them: its accuracy on these is 1."""
    model, tokenizer = load_model(folder, TASK, new_head=False), load_tokenizer(folder)
    found = reference_outputs(model, tokenizer, TASK, texts, 64).argmax(1)
    return [(text, LABELS[i]) for text, i in zip(texts, found, strict=True)]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A classifier that is right on all of the data, to lose half of its parts in two steps."""
    monkeypatch.setattr(measure, "SECONDS", 0.02)
    folder = tiny.make_model(tmp_path / "model")
    train = answered(folder, [text for text, _ in labelled_rows(10)])
    held_out = answered(folder, [text for text, _ in labelled_rows(8, start=100)])
    more = "where is\u2028my parcel\n\nthanks\x0b a lot\r\n"  # two texts
    (tmp_path / "more.txt").write_bytes(more.encode("utf-8-sig"))
    return {
        "model": str(folder),
        "output": str(tmp_path / "small.edgelm"),
        "cache_dir": str(tmp_path / "cache"),
        "threads": 1,
        "targets": ["onnx:fp32", "gguf:f32"],
        "data.train": str(write_csv(tmp_path / "train.csv", train)),
        "data.eval": str(write_csv(tmp_path / "eval.csv", held_out)),
        "train.method": "none",
        "train.batch_size": 8,
        "train.precision": "fp32",
        "prune.layers": 1,
        "prune.heads": 0.5,
        "prune.ffn": 0.5,
        "distil.unlabelled": str(tmp_path / "more.txt"),
        "distil.steps": 2,
        "distil.epochs": 4.0,
        "distil.learning_rate": 3e-3,
        "distil.max_drop": 1.0,
    }


def compiled(keys: dict[str, Any], **changed: Any) -> tuple[Manifest, dict[str, str]]:
    """The manifest, and what became of each pass."""
    stream = io.StringIO()
    recipe = load_recipe(None, {**keys, **{k.replace("__", "."): v for k, v in changed.items()}})
    manifest = compile(recipe, Progress("json", stream)).manifest
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    notes = [e["text"] for e in events if e["event"] == "note"]
    assert len(set(notes)) == len(notes)
    return manifest, {e["stage"]: e["event"] for e in events if e["event"] in ("done", "cached")}


def student_of(keys: dict[str, Any]) -> Path:
    (folder,) = (Path(keys["cache_dir"]) / "shrink").glob("[!.]*")
    return folder


class Interrupting(Progress):
    """Ctrl-C at one step of the second training."""

    def __init__(self) -> None:
        super().__init__("quiet")
        self.n_steps = 0

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        self.n_steps += total == 8  # of each training
        if self.n_steps == 14:
            raise KeyboardInterrupt


def test_a_pruned_student_takes_the_teachers_place(keys: dict[str, Any]):
    keys |= {"prune.layer_choice": "measured"}
    manifest, passes = compiled(keys)
    assert passes["teach"] == passes["shrink"] == "done"
    assert manifest.original["accuracy"] == 1
    for variant in manifest.variants:  # lowered exactly, however far from the original
        assert variant.parity is not None and variant.parity.agreement == 1
        assert variant.metrics["accuracy"] == manifest.reference["accuracy"]
    folder = student_of(keys)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["edgelm_heads"]) == (1, 2)
    assert config["intermediate_size"] == 32
    weights = load_file(folder / "model" / "model.safetensors")
    assert weights["bert.encoder.layer.0.attention.self.query.weight"].shape == (16, 32)
    said = json.loads((folder / "history.json").read_text())
    assert said["texts"] == 32 and said["parameters"] < said["parameters_before"]
    assert [e["epoch"] for e in said["epochs"]] == [1, 2, 3, 4]
    assert said["epochs"][-1]["loss"] < said["epochs"][0]["loss"]
    answers = [
        edgelm.load(Path(keys["output"]), variant=v.name, threads=1).predict("i lost my card")
        for v in manifest.variants
    ]
    assert answers[0].label == answers[1].label  # type: ignore[union-attr]
    report = (Path(keys["output"]) / "report.html").read_text(encoding="utf-8")
    assert "original" in report
    (changes,) = Path(keys["cache_dir"]).glob("teach/[!.]*/layers.json")
    first, second = json.loads(changes.read_text())
    assert f"[{int(second > first)}] are kept" in report
    # what an interrupted compile goes on to is the same, and the teacher is not asked again
    Path(keys["cache_dir"], "shrink").rename(Path(keys["cache_dir"], "undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        compile(load_recipe(None, keys), Interrupting())
    _, passes = compiled(keys)
    assert passes["teach"] == "cached"
    again = load_file(student_of(keys) / "model" / "model.safetensors")
    assert all((again[name] == value).all() for name, value in weights.items())
    # one that was killed while it removed what it no longer needed has nothing to train
    folder = student_of(keys)
    said = (folder / "history.json").read_bytes()
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    (partial / "step-2" / "model").mkdir(parents=True)
    compiled(keys)
    assert (folder / "history.json").read_bytes() == said
    assert not list(folder.glob("step-*"))


@pytest.mark.parametrize(
    ("epochs", "n_steps", "each"),
    [(8.0, 2, 4), (5.0, 2, 3), (0.5, 1, 0.5), (0.5, 2, 0.25), (2.0, 4, 0.5), (2.5, 2, 1.25)],
)
def test_epochs_are_shared_out_between_steps(epochs: float, n_steps: int, each: float):
    assert epochs_of_step(epochs, n_steps) == each


def test_a_student_that_lost_too_much_is_refused(keys: dict[str, Any]):
    keys |= {"distil.epochs": 1.0, "distil.steps": 1, "distil.learning_rate": 1e-6}
    keys |= {"targets": ["onnx:fp32"]}
    manifest, _ = compiled(keys)
    drop = 1 - manifest.variants[0].metrics["accuracy"]
    assert drop > 0.05
    shutil.rmtree(keys["output"])
    with pytest.raises(VerificationError, match="before it was made smaller"):
        compiled(keys, distil__max_drop=drop - 0.01)
    assert not Path(keys["output"]).exists()
    _, passes = compiled(keys, distil__max_drop=drop + 1e-5)  # it is kept with 6 digits
    assert {passes["teach"], passes["shrink"], passes["verify onnx-fp32"]} == {"cached"}


@pytest.mark.slow
def test_embeddings_and_another_checkpoint(keys: dict[str, Any], tmp_path: Path):
    """The second student has the teacher's own weights, so it has nothing to learn."""
    folder = tiny.make_model(tmp_path / "embedder", labels=None)
    keys |= {"model": str(folder), "task": "feature-extraction", "targets": ["onnx:fp32"]}
    keys |= {"distil.epochs": 10.0, "distil.steps": 1, "prune.heads": None}
    manifest, _ = compiled(keys)
    assert manifest.original["original_cosine"] == pytest.approx(1)
    assert manifest.reference["original_cosine"] < 0.9999
    with pytest.raises(VerificationError, match="original_cosine"):
        compiled(keys, distil__max_drop=1e-6)
    keys |= {"prune.layers": None, "prune.ffn": None, "distil.epochs": 1.0}
    keys |= {"distil.learning_rate": 1e-8, "distil.max_drop": 1e-6}
    compiled(keys, distil__student=str(folder))
    other = tiny.make_model(tmp_path / "other", "roberta", labels=None)
    with pytest.raises(ModelError, match="its vocabulary is not that of the teacher"):
        compiled(keys, distil__student=str(other))


def test_a_student_of_another_width_learns_relations(keys: dict[str, Any], tmp_path: Path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48}
    config = AutoConfig.from_pretrained(keys["model"], **sizes)
    torch.manual_seed(1)
    narrow = tmp_path / "narrow"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(narrow)
    load_tokenizer(Path(keys["model"])).save_pretrained(narrow)
    keys |= OTHER | {"distil.student": str(narrow), "distil.unlabelled": None}
    keys |= {"distil.relation_weight": 5.0, "targets": ["onnx:fp32"]}
    compiled(keys)
    folder = student_of(keys)
    student = load_model(folder / "model", TASK, new_head=False)
    assert student.config.hidden_size == 24
    losses = [
        epoch["loss"] for epoch in json.loads((folder / "history.json").read_text())["epochs"]
    ]
    assert losses[-1] < losses[0]
    teacher = load_model(Path(keys["model"]), TASK, new_head=False)
    before = load_model(narrow, TASK, new_head=False)
    given = load_tokenizer(Path(keys["model"]))(tiny.CORPUS, padding=True, return_tensors="pt")
    mask = given["attention_mask"]

    def relation_loss(model: Any) -> float:
        with torch.no_grad():
            with relations.watched(teacher) as seen:
                teacher(**given)
            said = relations.answers(seen, mask)
            with relations.watched(model) as seen:
                model(**given)
            return float(relations.loss(model, seen, said, mask))

    assert relation_loss(teacher) == pytest.approx(0, abs=1e-6)
    assert relation_loss(student) < 0.9 * relation_loss(before)


def test_relations_need_an_encoder_that_has_them(keys: dict[str, Any], tmp_path: Path):
    other = tiny.make_model(tmp_path / "modern", "modernbert")
    keys |= OTHER | {"distil.student": str(other), "distil.relation_weight": 1.0}
    with pytest.raises(ModelError, match="relations are learned by bert"):
        compiled(keys)


WHOLE = {f"prune.{part}": None for part in ("layers", "heads", "ffn")}
OTHER = {**WHOLE, "distil.student": "x", "distil.steps": 1}


def test_rules(keys: dict[str, Any]):
    for changed, says in (
        ({"prune.ffn": 1.5}, "a share under 1, or a whole number"),
        ({"prune.heads": 0.0}, "a share under 1, or a whole number"),
        ({"distil.student": "x"}, "leave distil.student out"),
        ({"data.train": None, "distil.unlabelled": None}, "needs texts"),
        ({"distil.temperature": 0.0}, "must be above 0"),
        ({**WHOLE, "distil.student": "x", "prune.vocab": True}, "whole vocabulary"),
        ({**OTHER, "distil.hidden_weight": 0.5}, "no layer belongs to one of the teacher's"),
        ({**OTHER, "distil.steps": 2}, "loses no parts"),
        ({**OTHER, "prune.layer_choice": "measured"}, "loses no layers"),
        ({"task": "feature-extraction", "distil.temperature": 2.0}, "no labels to soften"),
        ({"task": "feature-extraction", "distil.label_weight": 0.25}, "embeddings have no labels"),
        ({"prune.method": "magnitude"}, r"needs prune\.sparsity"),
    ):
        with pytest.raises(RecipeError, match=says):
            load_recipe(None, {**keys, **changed})
    without = {k: v for k, v in keys.items() if not k.startswith("prune")}
    with pytest.raises(RecipeError, match="something to learn for"):
        load_recipe(None, without)


def test_texts_without_labels_add_nothing_to_the_loss_on_labels():
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    from edgelm.compiler.passes.shrink import label_loss

    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    one = torch.tensor([2, -100, 0, -100])
    torch.testing.assert_close(label_loss(logits, one), cross_entropy(logits[[0, 2]], one[[0, 2]]))
    sets = torch.tensor([[1.0, 0, 1], [-100, -100, -100], [0, 0, 0], [0, 1, 0]])
    known = [0, 2, 3]
    expected = binary_cross_entropy_with_logits(logits[known], sets[known])
    torch.testing.assert_close(label_loss(logits, sets), expected)
    none = label_loss(logits, torch.full((4,), -100))
    (gradient,) = torch.autograd.grad(none, logits)
    assert none.item() == 0 and not gradient.any()
