"""Structured pruning: what is left out, that it is what matters least, and that engines agree."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_data import labelled_rows, write_csv

from edgelm.compiler import compile, load_recipe
from edgelm.compiler.distil import pruning
from edgelm.compiler.distil.pruning import Shape
from edgelm.compiler.hf import load_model
from edgelm.compiler.shrinking import PruneConfig
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, read_manifest
from edgelm.targets.encoders import NAMES

LABELS = ("card_lost", "refund", "other")
TASK = Task(kind="text-classification", labels=LABELS, problem="single_label")


def batch(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return dict(
        AutoTokenizer.from_pretrained(folder)(tiny.CORPUS, padding=True, return_tensors="pt")
    )


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


@pytest.mark.parametrize("family", NAMES)
def test_what_is_left_is_the_model_with_the_rest_made_zero(family: str, tmp_path: Path):
    """The oracle is the whole model, of which the outputs of parts left out are set to zero."""
    folder = tiny.make_model(tmp_path / "m", family, seed=3)
    inputs = batch(folder)
    small, whole = (load_model(folder, TASK, new_head=False) for _ in range(2))
    importance = pruning.measure(small, [inputs], None)
    pruning.keep_best(small, importance, Shape(2, 3, 40))
    names = NAMES[family]
    body = whole.base_model
    with torch.no_grad():
        for i in range(2):
            head = int(importance.heads[i].argmin())
            columns = importance.ffn[i].argsort()[:24]
            body.get_submodule(names.part(i, "attn_output")).weight[:, 8 * head : 8 * head + 8] = 0
            body.get_submodule(names.part(i, "ffn_down")).weight[:, columns] = 0
    torch.testing.assert_close(logits(small, inputs), logits(whole, inputs), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    small.save_pretrained(tmp_path / "small")
    again = load_model(tmp_path / "small", TASK, new_head=False)
    assert torch.equal(logits(small, inputs), logits(again, inputs))
    assert pruning.shape_of(again.config) == Shape(2, 3, 40)


def test_layers_kept(tmp_path: Path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tiny.make_model(tmp_path / "m")
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    inputs = batch(folder)
    with torch.inference_mode():
        body = model.base_model
        hidden = body.embeddings(inputs["input_ids"], inputs["token_type_ids"])
        mask = torch.where(inputs["attention_mask"][:, None, None, :] > 0, 0.0, -1e9)
        for i in (1, 3):
            out = body.encoder.layer[i](hidden, attention_mask=mask)
            hidden = out[0] if isinstance(out, tuple) else out
        expected = model.classifier(body.pooler(hidden))
    pruning.keep_layers(model, pruning.evenly(4, 2))
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-5)
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", NAMES)
def test_a_layer_that_changes_nothing_goes(family: str, tmp_path: Path):
    """And what the others change is 1 - the cosine of the model's own hidden states."""
    folder = tiny.make_model(tmp_path / "m", family)
    inputs, model = batch(folder), load_model(folder, TASK, new_head=False)
    make_idle(model, 0)
    changes = pruning.layer_changes(model, [inputs])
    assert changes[0] == pytest.approx(0, abs=1e-5)
    kept = pruning.most_changing(changes, 1)
    assert kept == [1]
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states
    cosines = torch.cosine_similarity(states[1], states[2], dim=-1)
    expected = 1 - float(cosines[inputs["attention_mask"].bool()].mean())
    assert changes[1] == pytest.approx(expected, rel=1e-4)
    before = logits(model, inputs)
    left = pruning.keep_layers(model, kept)
    torch.testing.assert_close(logits(left, inputs), before, rtol=0, atol=1e-4)


def make_idle(model: Any, i: int) -> None:
    """Layer i gives what it is given: it adds nothing, and its norms see what is normalized."""
    names, body = NAMES[model.config.model_type], model.base_model
    norms = [names.part(i, "attn_output_norm"), names.part(i, "layer_output_norm")]
    norms.append("embeddings.LayerNorm" if i == 0 else names.part(i - 1, "layer_output_norm"))
    with torch.no_grad():
        for path in (names.part(i, "attn_output"), names.part(i, "ffn_down"), *norms):
            module = body.get_submodule(path)
            module.weight.fill_(1.0 if path in norms else 0.0)
            module.bias.zero_()


def test_first_order_importance_is_the_change_of_the_loss(tmp_path: Path):
    """Beside finite differences: a column multiplied with 1 - h, for each text alone."""
    folder = tiny.make_model(tmp_path / "m")
    inputs, model = batch(folder), load_model(folder, TASK, new_head=False).double()
    labels = torch.arange(len(tiny.CORPUS)) % 3

    def loss(outputs: Any, given: dict[str, Any]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits, given["labels"], reduction="sum")

    found = pruning.measure(model, [{**inputs, "labels": labels}], loss)
    step = 1e-4

    def losses() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits(model, inputs), labels, reduction="none")

    def changed(weight: torch.Tensor, at: slice) -> float:
        before = losses()
        with torch.no_grad():
            weight[:, at] *= 1 - step
            after = losses()
            weight[:, at] /= 1 - step
        return float((after - before).abs().sum() / step)

    layer = model.base_model.encoder.layer[1]
    head = changed(layer.attention.output.dense.weight, slice(16, 24))
    column = changed(layer.output.dense.weight, slice(5, 6))
    assert float(found.heads[1, 2]) == pytest.approx(head, rel=1e-2)
    assert float(found.ffn[1, 5]) == pytest.approx(column, rel=1e-2)


def test_how_much_is_left():
    whole = Shape(6, 12, 1536)
    assert pruning.smaller(whole, PruneConfig()) == whole
    assert pruning.smaller(whole, PruneConfig(layers=3, ffn=0.5, heads=0.5)) == Shape(3, 6, 768)
    assert pruning.smaller(whole, PruneConfig(layers=0.5, ffn=500, heads=1)) == Shape(3, 11, 1024)
    assert pruning.evenly(6, 3) == [1, 3, 5]
    assert pruning.evenly(12, 5) == [1, 3, 6, 8, 11]


def test_families_that_lose_no_parts(tmp_path: Path):
    folder = tiny.make_model(tmp_path / "m", "modernbert")
    with pytest.raises(ModelError, match="modernbert"):
        pruning.shape_of(load_model(folder, TASK, new_head=False).config)


@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_engines_answer_like_a_model_with_fewer_heads(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """GGUF's graph holds the missing heads as zeros; ONNX has none of them, in whole attention."""
    import onnx

    from edgelm.compiler.passes import measure

    monkeypatch.setattr(measure, "SECONDS", 0.02)
    folder = tiny.make_model(tmp_path / "m", family)
    model = load_model(folder, TASK, new_head=False)
    pruning.keep_best(model, pruning.measure(model, [batch(folder)], None), Shape(2, 3, 32))
    model.save_pretrained(folder)
    keys = {
        "model": str(folder), "output": str(tmp_path / "narrow.edgelm"), "threads": 1,
        "cache_dir": str(tmp_path / "cache"), "train.method": "none",
        "data.eval": str(write_csv(tmp_path / "eval.csv", labelled_rows())),
        "targets": ["onnx:fp32", "onnx:int8", "gguf:f32", "gguf:q8_0"],
        "verify.limits": {s: {"min_agreement": 0.5, "max_kl": 1.0, "max_drop": 1.0}
                          for s in ("onnx:int8", "gguf:q8_0")},
    }  # fmt: skip
    bundle = compile(load_recipe(None, keys)).path
    parity = {v.name: v.parity for v in read_manifest(bundle).variants}
    assert parity["onnx-fp32"].max_abs_diff < 1e-4  # type: ignore[union-attr]
    assert parity["gguf-f32"].max_abs_diff < 0.02  # type: ignore[union-attr]
    assert parity["gguf-q8_0"].max_abs_diff < 1  # type: ignore[union-attr]
    for name, operator in (("fp32", "Attention"), ("int8", "QAttention")):
        graph = onnx.load(str(bundle / f"variants/onnx-{name}/model.onnx")).graph
        found = [n for n in graph.node if n.op_type in (operator, "MultiHeadAttention")]
        assert len(found) == 2
        assert all(a.i == 3 for n in found for a in n.attribute if a.name == "num_heads")
