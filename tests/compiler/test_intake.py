"""What comes in as a model: where it is looked for, what is unsafe, what its own files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelm.compiler.passes.intake import find_model, read_source
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import ModelError

CONFIG = {"model_type": "bert", "max_position_embeddings": 64}


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a model as intake looks at."""
    write_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def refused(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as err:
        read_source(folder)
    return err.value


def test_what_is_read(folder: Path) -> None:
    source = read_source(folder)
    assert (source.model_type, source.max_tokens) == ("bert", 64)
    assert (source.pooling, source.normalize) == (None, None)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    err = refused(folder)
    assert "pytorch_model.bin, which can run code when loaded" in err.message
    assert "save_pretrained" in str(err.hint)
    (folder / "model.safetensors").write_bytes(b"")  # beside safe weights they are not looked at
    read_source(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors in it" in refused(folder).message


def test_code_of_its_own(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "auto_map": {"AutoModel": "evil.Evil"}})
    err = refused(folder)
    assert "`auto_map`" in err.message
    assert "runs no code" in str(err.hint)


def test_an_attention_from_elsewhere_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "_attn_implementation_internal": "a/b"})
    assert "_attn_implementation_internal" in refused(folder).message


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a mapping"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"\xff", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (None, "missing, so this is no Hugging Face model"),
    ],
)
def test_broken_config(folder: Path, raw: bytes | None, says: str) -> None:
    path = folder / "config.json"
    path.unlink() if raw is None else path.write_bytes(raw)
    assert says in refused(folder).message


def rewrite(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "hidden_act": "relu"})


CHANGES: list[tuple[Callable[[Path], Any], bool]] = [
    (rewrite, True),
    (lambda f: (f / "model.safetensors").write_bytes(b"other"), True),
    (lambda f: (f / "vocab.txt").write_text("a\n"), True),
    (lambda f: write_json(f / "1_Pooling" / "config.json", {}), True),
    (lambda f: (f / "README.md").write_text("new"), False),
    (lambda f: (f / "onnx.bin").write_text("new"), False),
]


@pytest.mark.parametrize(("change", "decides"), CHANGES, ids=range(len(CHANGES)))
def test_the_digest_is_of_the_files_that_decide(folder: Path, change, decides: bool) -> None:
    before = read_source(folder).digest
    change(folder)
    assert (read_source(folder).digest != before) is decides


@pytest.mark.parametrize(
    ("name", "data", "tokens"),
    [
        ("tokenizer_config.json", {"model_max_length": 32}, 32),
        ("tokenizer_config.json", {"model_max_length": int(1e30)}, 64),
        ("sentence_bert_config.json", {"max_seq_length": 48}, 48),
        ("config.json", {"model_type": "roberta", "max_position_embeddings": 66}, 64),
        ("config.json", {**CONFIG, "model_type": "xlm-roberta", "pad_token_id": 3}, 60),
        ("config.json", {"model_type": "bert"}, 65536),
    ],
)
def test_the_longest_text(folder: Path, name: str, data: object, tokens: int) -> None:
    write_json(folder / name, data)
    assert read_source(folder).max_tokens == tokens


def sentence_transformers(folder: Path, pooling: dict[str, Any] | None, *others: str) -> None:
    kinds = ["Transformer", *(["Pooling"] if pooling is not None else []), *others]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    write_json(folder / "modules.json", modules)
    if pooling is not None:
        write_json(folder / "1_Pooling" / "config.json", pooling)


@pytest.mark.parametrize(
    ("pooling", "others", "found"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [], ("mean", False)),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, [], ("cls", False)),
        ({"pooling_mode_lasttoken": True}, ["Normalize"], ("last", True)),
        ({"pooling_mode": "mean"}, ["Normalize"], ("mean", True)),
        ({"pooling_mode": "lasttoken"}, [], ("last", False)),
        (None, ["Normalize"], (None, True)),
    ],
)
def test_sentence_transformers_files(folder: Path, pooling, others: list[str], found) -> None:
    sentence_transformers(folder, pooling, *others)
    source = read_source(folder)
    assert (source.pooling, source.normalize) == found


@pytest.mark.parametrize(
    ("pooling", "others", "says"),
    [
        ({"pooling_mode_max_tokens": True}, [], "pooling ['pooling_mode_max_tokens'] is not"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "is not supp"),
        ({"pooling_mode_mean_tokens": False}, [], "pooling [] is not supported"),
        ({"pooling_mode_mean_tokens": True}, ["Dense"], "module 'Dense' is not supported"),
    ],
)
def test_what_sentence_transformers_can_and_this_cannot(folder, pooling, others, says) -> None:
    sentence_transformers(folder, pooling, *others)
    assert says in refused(folder).message


def test_broken_modules_json(folder: Path) -> None:
    write_json(folder / "modules.json", {"type": 1})
    assert "modules.json: cannot be read" in refused(folder).message


def not_found(name: str) -> ModelError:
    with pytest.raises(ModelError) as err:
        find_model(Recipe(model=name))
    return err.value


def test_a_directory_is_taken(folder: Path) -> None:
    assert find_model(Recipe(model=str(folder))) == folder
    assert not_found(str(folder / "config.json")).message.endswith("is a Hugging Face directory")
    err = not_found(str(folder / "none"))
    assert err.message == f"{folder / 'none'}: no such directory"
    assert "a hub id" in str(err.hint)


def test_a_directory_inside_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    inside = tmp_path / "some_models" / "model"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise RuntimeError('nothing is imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model(Recipe(model="pkg:some_models/model")) == inside
    err = not_found("pkg:no_such_models/model")
    assert (err.message, err.hint) == (
        "pkg:no_such_models/model: no package 'no_such_models' is installed",
        "pip install no-such-models",
    )
    for outside in ("none", "..", "model/../..", "/etc", "../some_models/model"):
        assert "has no directory" in not_found(f"pkg:some_models/{outside}").message
    for odd in ("pkg:", "pkg:a.b/c", "pkg:sys/x"):
        assert "is installed" in not_found(odd).message


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    err = not_found("edgelm/no-such-model")
    assert (
        err.message == "edgelm/no-such-model: not a local directory, and the hub cannot be reached"
    )
    assert "pass its directory" in str(err.hint)
