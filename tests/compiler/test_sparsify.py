"""Single weights become zero: which ones, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny_data import labelled_rows, write_csv

from edgelm.compiler import load_recipe
from edgelm.compiler.hf import linear_layers, load_tokenizer
from edgelm.compiler.passes.sparsify import input_norms, kept
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import RecipeError, VerificationError


@pytest.mark.parametrize(
    ("pattern", "by_row", "n_groups"),
    [("unstructured", False, 1), ("unstructured", True, 6), ("2:4", True, 24)],
)
def test_the_lowest_scores_of_each_group_go(pattern: Any, by_row: bool, n_groups: int) -> None:
    score = np.random.default_rng(0).permutation(96).reshape(6, 16)
    mask = kept(torch.tensor(score).float(), 0.5, pattern, by_row=by_row).numpy()
    groups = zip(score.reshape(n_groups, -1), mask.reshape(n_groups, -1), strict=True)
    for values, stays in groups:
        assert stays.sum() == len(values) // 2
        assert values[stays].min() > values[~stays].max()


def test_a_share_is_rounded_down_and_ties_are_cut_to_it() -> None:
    mask = kept(torch.ones(2, 5), 0.5, "unstructured", by_row=True)
    assert (~mask).sum(dim=1).tolist() == [2, 2]


def test_norms_are_of_real_tokens_alone(tmp_path: Path) -> None:
    """Against each text alone, without padding, and values read behind the layer's own matrix."""
    from transformers import AutoModel

    folder = tiny.make_model(tmp_path, "bert", labels=None)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), load_tokenizer(folder)
    layers = linear_layers(model)
    assert len(layers) == 2 * 6 and not any("pooler" in name for name in layers)
    texts = ["i lost my card", "a", "where is the parcel and how do you reset a password"]
    found = input_norms(model, tokenizer, layers, texts, 64)
    name = "encoder.layer.0.attention.self.query"  # which is given the embeddings
    with torch.no_grad():
        rows = [model.embeddings(tokenizer(t, return_tensors="pt").input_ids)[0] for t in texts]
    expected = torch.cat(rows).norm(dim=0)
    torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def zeros(folder: Path) -> dict[str, float]:
    """Share of zeros in each linear layer's weights."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return {
        name: float((module.weight == 0).float().mean())
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


@pytest.mark.parametrize(
    ("method", "pattern", "sparsity"),
    [("magnitude", "unstructured", 0.25), ("wanda", "unstructured", 0.3), ("wanda", "2:4", 0.5)],
)
def test_a_sparsified_model_is_compiled_and_compared_with_the_whole_one(
    method: str, pattern: str, sparsity: float, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    keys: dict[str, Any] = dict(
        train__method="none",
        data__train=str(write_csv(tmp_path / "train.csv", labelled_rows(6, 6))),
        data__eval=str(write_csv(tmp_path / "eval.csv", labelled_rows(6))),
        prune__sparsity=sparsity,
        prune__method=method,
        prune__pattern=pattern,
        targets=["onnx:fp32"],
    )
    name = f"sparse-{method}-{pattern.replace(':', '')}"
    with pytest.raises(VerificationError, match="verification failed") as refused:
        compile_tiny(name, **keys)
    assert "prune.sparsity" in str(refused.value.hint)
    loose = dict(verify__min_agreement=0.0, verify__max_drop=1.0, verify__max_kl=100.0)
    path = compile_tiny(name, **keys, **loose)
    said = Bundle(path).manifest.provenance["sparsify"]
    assert (said["method"], said["pattern"], said["layers"]) == (method, pattern, 12)
    assert (
        abs(said["zeros"] / said["weights"] - sparsity) < 0.03
    )  # rows of 32 are cut to whole ones
    assert "no file is smaller and no answer faster" in (path / "report.html").read_text("utf-8")
    made = [p.parent for p in (path.parent / "cache").glob("sparsify/*/model/config.json")]
    shares = [zeros(p) for p in made]
    body = [[v for k, v in s.items() if k.startswith("bert.encoder")] for s in shares]
    assert any(np.allclose(values, sparsity, atol=0.03) for values in body)
    assert all(s["classifier"] == s["bert.pooler.dense"] == 0 for s in shares)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"prune.sparsity": 1.0}, "must be over 0 and under 1"),
        ({"prune.sparsity": 0.6, "prune.pattern": "2:4"}, "must be 0.5"),
        ({"data.train": None, "data.eval": "e.csv"}, "needs training texts.*or take magnitude"),
        ({"task": "text-generation"}, "is for classification and embeddings"),
        ({"prune.pattern": "1:2"}, "prune.pattern"),
    ],
)
def test_refused_before_any_work(keys: dict[str, Any], says: str) -> None:
    base = {"model": "m", "data.train": "t.csv", "prune.sparsity": 0.5}
    with pytest.raises(RecipeError, match=says):
        load_recipe(None, base | keys)
