"""Encoders with a trimmed vocabulary, through the whole compiler and both engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_data import TEXTS, labelled_rows, write_csv

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import ModelError, RecipeError, VerificationError

TRAINING = [text for texts in TEXTS.values() for text in texts]
TARGETS = ["onnx:fp32", "gguf:f32"]


def rows(texts: list[str]) -> list[tuple[str, ...]]:
    return [(text, list(TEXTS)[i % 3]) for i, text in enumerate(texts)]


def probabilities(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """What the Hugging Face model itself says, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return torch.softmax(torch.stack(logits), -1).numpy()


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] if f == "modernbert" else []) for f in tiny.FAMILIES],
)
def test_texts_of_kept_tokens_are_answered_as_before(
    family: str, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    texts = [f"{a} {b}" for a, b in pairwise(TRAINING)]
    path = compile_tiny(
        f"trim-{family}",
        family,
        train__method="none",
        data__train=str(write_csv(tmp_path / "train.csv", [(t, "x") for t in TRAINING + texts])),
        data__eval=str(write_csv(tmp_path / "eval.csv", rows([f"{t} now" for t in texts]))),
        prune__vocab=True,
        targets=TARGETS,
    )
    model = path.parent / f"trim-{family}-model"
    bundle = Bundle(path)
    said = bundle.manifest.provenance["trim"]
    assert said["tokens_after"] < 0.9 * said["tokens_before"]
    assert said["size_bytes_after"] < said["size_bytes_before"]
    assert said["eval_tokens_kept"] == said["eval_texts_as_before"] == 1.0
    assert "vocabulary trimmed from" in (path / "report.html").read_text("utf-8")
    want = probabilities(model, texts)
    for variant in bundle.manifest.variants:
        assert variant.parity is not None
        assert variant.parity.max_abs_diff < (1e-4 if variant.target == "onnx" else 1e-2)
        with edgelm.load(path, variant=variant.name, threads=1) as loaded:
            answers: Any = loaded.predict(texts, all_scores=True)
            loaded.predict(list(tiny.NASTY))  # dropped tokens, too, have an answer
        got = [list(a.scores.values()) for a in answers]
        np.testing.assert_allclose(got, want, atol=1e-4 if variant.target == "onnx" else 2e-3)


@pytest.mark.slow
def test_the_model_before_is_the_reference_unless_trained(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    unseen = ["angry login invoice address", "parcel exchange password", "happy shipment"] * 2
    keys: dict[str, Any] = dict(
        data__train=str(write_csv(tmp_path / "train.csv", labelled_rows(6))),
        data__eval=str(write_csv(tmp_path / "eval.csv", rows(unseen))),
        prune__vocab=True,
        targets=["onnx:fp32"],
    )
    with pytest.raises(VerificationError, match="verification failed") as refused:
        compile_tiny("trim-unseen", train__method="none", **keys)
    assert "--vocab-texts" in str(refused.value.hint)
    trained = compile_tiny("trim-trained", train__epochs=1, **keys)
    said = Bundle(trained).manifest.provenance
    assert said["trim"]["eval_texts_as_before"] == 0
    assert said["trim"]["eval_tokens_kept"] < 0.7  # the rest are single characters

    lines = tmp_path / "unlabelled.txt"
    lines.write_text("\n".join(unseen) + "\n", encoding="utf-8")
    kept = compile_tiny("trim-kept", train__method="none", prune__vocab_texts=str(lines), **keys)
    assert Bundle(kept).manifest.provenance["trim"]["eval_texts_as_before"] == 1
    assert Bundle(kept).manifest.provenance["model"] == {
        "name": said["model"]["name"].replace("trim-trained", "trim-kept"),
        "sha256": said["model"]["sha256"],  # of the model as it came in
    }


def test_shifted_positions_are_noticed(tmp_path: Path) -> None:
    """Positions that are counted from the padding token shift where its id does."""
    from edgelm.compiler.hf import load_tokenizer
    from edgelm.compiler.passes.intake import read_source
    from edgelm.compiler.passes.trim import check_outputs, save_model, save_tokenizer
    from edgelm.compiler.vocabulary import Vocabulary

    source = read_source(tiny.make_model(tmp_path / "model", "roberta"))
    tokenizer = load_tokenizer(source.folder)
    vocabulary = Vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
    kept = sorted(vocabulary.choose({}, (), None))
    save_tokenizer(tokenizer, vocabulary.trimmed(kept), tmp_path / "small")
    save_model(source, kept, tmp_path / "small")
    new = {old: i for i, old in enumerate(kept)}
    check_outputs(source, tmp_path / "small", ["a b", "c"], new, 16)
    config = tmp_path / "small" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"pad_token_id": 1', '"pad_token_id": 2'))
    with pytest.raises(VerificationError, match="outputs differ"):
        check_outputs(source, tmp_path / "small", ["a b", "c"], new, 16)


def test_decoders_are_refused(tmp_path: Path) -> None:
    import tiny_decoders

    recipe = load_recipe(
        None,
        {
            "model": str(tiny_decoders.make_embedder(tmp_path / "model", "qwen3")),
            "task": "feature-extraction",
            "data.train": str(write_csv(tmp_path / "train.csv", [("hello there", "x")])),
            "data.eval": str(write_csv(tmp_path / "eval.csv", labelled_rows(2))),
            "prune.vocab": True,
            "targets": ["onnx:fp32"],
            "output": str(tmp_path / "b.edgelm"),
            "cache_dir": str(tmp_path / "cache"),
        },
    )
    with pytest.raises(ModelError, match=r"is a decoder \(qwen3\).*encoders alone are trimmed"):
        compile(recipe)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"task": "text-generation"}, "text-generation models are not trimmed"),
        ({"data.train": None, "data.eval": "e.csv"}, "needs texts to choose tokens by"),
        ({"prune.vocab": False, "prune.vocab_size": 9}, "needs prune.vocab"),
        ({"prune.vocab_size": 0}, "must be >= 1"),
    ],
)
def test_refused_before_any_work(keys: dict[str, Any], says: str) -> None:
    base = {"model": "m", "data.train": "t.csv", "prune.vocab": True}
    with pytest.raises(RecipeError, match=says):
        load_recipe(None, base | keys)
