"""A decoder that gives vectors goes through the whole compiler, as published with its own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_decoders
from tiny_data import labelled_rows, write_csv

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.hf import load_tokenizer
from edgelm.compiler.passes import measure
from edgelm.compiler.passes.prepare import even_positions
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import EngineOptions
from edgelm.runtime.verify import verify_files, verify_variant

MAX_TOKENS = 24
TEXTS = ["where is my parcel", "退 款", "the refund is late " * 20, *tiny.NASTY]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_decoders.make_embedder(folder, "qwen3", num_hidden_layers=2)


def keys(model_dir: Path, folder: Path, **overrides: object) -> dict[str, object]:
    data = write_csv(folder / "texts.csv", labelled_rows(4))
    return {
        "model": str(model_dir),
        "task": "feature-extraction",
        "data.eval": str(data),
        "max_tokens": MAX_TOKENS,
        "targets": ["onnx:fp32", "gguf:q8_0"],
        "output": str(folder / "b.edgelm"),
        "cache_dir": str(folder / "cache"),
        "threads": 1,
        **overrides,
    }


@pytest.fixture(scope="module")
def bundle(
    model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch_session: pytest.MonkeyPatch,
) -> Bundle:
    monkeypatch_session.setattr(measure, "SECONDS", 0.02)  # the figures are not looked at
    recipe = load_recipe(None, keys(model_dir, tmp_path_factory.mktemp("bundle")))
    return Bundle(compile(recipe).path)


def vectors(model_dir: Path, texts: list[str]) -> np.ndarray:
    """The last hidden state of each text's last token, scaled to length one: (N, 64)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModel.from_pretrained(model_dir, attn_implementation="eager").eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id  # what the tokenizer ends a text with is not cut
        with torch.no_grad():
            last = model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        rows.append(last / np.linalg.norm(last))
    return np.stack(rows)


def test_vectors_are_those_of_hugging_face(bundle: Bundle, model_dir: Path) -> None:
    task = bundle.manifest.task
    assert (task.pooling, task.normalize, task.dimensions) == ("last", True, 64)
    assert verify_files(bundle).ok
    expected = vectors(model_dir, TEXTS)
    for variant in bundle.manifest.variants:
        assert variant.parity is not None and variant.parity.mean_cosine is not None
        assert variant.parity.mean_cosine > 0.999
        assert verify_variant(bundle, variant, EngineOptions(threads=1)).ok
        with edgelm.load(bundle.root, variant=variant.name, threads=1) as model:
            answers = model.predict(TEXTS)
            with pytest.raises(edgelm.InputError, match="longer than 24 tokens"):
                model.predict(TEXTS, on_long="error")
        found = np.stack([a.vector for a in answers])  # type: ignore[union-attr]
        if variant.precision == "fp32":
            np.testing.assert_allclose(found, expected, atol=1e-4)
        else:
            assert (found * expected).sum(1).min() > 0.995
        assert [a.truncated for a in answers][:3] == [False, False, True]


def test_what_is_said_of_it(run_cli: Callable[..., object], bundle: Bundle) -> None:
    shown = run_cli("inspect", bundle.root)
    assert "feature-extraction: 64 dimensions, last pooling, length one" in shown.out  # type: ignore[attr-defined]
    page = (bundle.root / "report.html").read_text(encoding="utf-8")
    assert "prompts before them, which are not added: query" in page


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"pooling": "cls"}, edgelm.ModelError, "first token sees nothing but itself"),
        ({"train.method": "lora"}, edgelm.RecipeError, "embeddings are compiled as they are"),
        ({"adapter": "lora"}, edgelm.RecipeError, "merge the adapter into the model before"),
        (
            {"quantize.smooth": 0.5, "targets": ["onnx:int8"], "data.train": "TEXTS"},
            edgelm.RecipeError,
            "is for encoders",
        ),
    ],
)
def test_refused(overrides, error, says: str, model_dir: Path, tmp_path: Path) -> None:
    if "data.train" in overrides:
        texts = write_csv(tmp_path / "train.csv", labelled_rows(4))
        overrides = {**overrides, "data.train": str(texts)}
    with pytest.raises(error, match=says):
        compile(load_recipe(None, keys(model_dir, tmp_path, **overrides)))


def test_longrope_is_kept_to_where_texts_do_not_depend_on_each_other(tmp_path: Path) -> None:
    from transformers import AutoConfig

    found = [
        even_positions(
            AutoConfig.from_pretrained(tiny_decoders.make_decoder(tmp_path / name, name))
        )
        for name in ("phi3-longrope", "llama-longrope", "llama-yarn", "gemma3-pattern")
    ]
    assert found == [64, 64, None, None]


def test_a_model_without_padding_token_pads_with_its_end(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    stated = json.loads((model_dir / "tokenizer_config.json").read_text())
    del stated["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
