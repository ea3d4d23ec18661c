"""The GGUF target against the Hugging Face model on the same ragged batches.

llama.cpp reads GELU from a table of float16 values and keeps attention's keys and values at
float16, so even an f32 file differs from Hugging Face by about 2^-11 of a value at each layer. The
tests allow 1 % of the logits' own spread for f32 and 3 % for f16; a wrong head, pooling, position
or window is off by the whole spread.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from gguf import LlamaFileType
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.errors import InputError, ModelError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.engine import device_for as device_of
from edgelm.targets.gguf.engine import has_cuda
from edgelm.targets.gguf.precisions import FLOAT_FILE_TYPES, QUANTIZED_FILE_TYPES, needs_matrix

LABELS = ("card_lost", "refund", "other")
CLASSIFY = Task("text-classification", LABELS)
TEXTS = [*tiny.CORPUS[:12], *tiny.CORPUS[-4:], "a", " ".join(tiny.WORDS[:50])]  # 1 to 50 words


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """family, bare -> its directory, made once."""
    made: dict[tuple[str, bool], Path] = {}

    def get(family: str, *, bare: bool = False) -> Path:
        if (family, bare) not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family, bare] = tiny.make_model(folder, family, labels=None if bare else LABELS)
        return made[family, bare]

    return get


def tokenize(model_dir: Path, texts, pairs=None) -> TokenBatch:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = tokenizer(
        texts, pairs, padding=True, truncation=True, max_length=60, return_token_type_ids=True,
        return_tensors="np",
    )  # fmt: skip
    mask = rows["attention_mask"]
    return TokenBatch(
        rows["input_ids"].astype(np.int32),
        mask.sum(1).astype(np.int32),
        (rows["token_type_ids"] * mask).astype(np.int32),
    )


def reference(model_dir: Path, task: Task, batch: TokenBatch, *, type_ids=False) -> np.ndarray:
    """Logits, or hidden states pooled with a plain loop, of the Hugging Face model."""
    embeds = task.kind == "feature-extraction"
    auto = AutoModel if embeds else AutoModelForSequenceClassification
    model = auto.from_pretrained(model_dir, dtype=torch.float32).eval()
    mask = np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    inputs = {
        "input_ids": torch.tensor(batch.input_ids).long(),
        "attention_mask": torch.tensor(mask).long(),
    }
    if type_ids:
        inputs["token_type_ids"] = torch.tensor(batch.type_ids).long()
    with torch.no_grad():
        out = model(**inputs)
    if not embeds:
        return out.logits.numpy()
    rows = []
    for hidden, n in zip(out.last_hidden_state.numpy(), batch.lengths, strict=True):
        real = hidden[:n]
        rows.append({"mean": real.mean(0), "cls": real[0], "last": real[-1]}[task.pooling])
    return np.stack(rows)


def lower(model_dir: Path, task: Task, folder: Path, precision="f32", max_tokens=60, types=False):
    folder.mkdir(parents=True, exist_ok=True)
    text = TextLimits(max_tokens, type_ids=types)
    return TARGET.lower(LowerRequest(model_dir, task, text, precision, folder))


def variant_of(lowered, precision="f32") -> Variant:
    files = tuple(FileEntry(f, "0" * 64, 1) for f in lowered.files)
    return Variant("v", "gguf", precision, files, lowered.options, lowered.engine)


def run(model_dir: Path, task: Task, folder: Path, batch: TokenBatch, precision="f32", **how):
    lowered = lower(model_dir, task, folder, precision, **how)
    assert sorted(p.name for p in folder.iterdir()) == sorted(lowered.files)
    session = TARGET.open(folder, variant_of(lowered, precision), task, EngineOptions(threads=1))
    try:
        return session.run(batch)
    finally:
        session.close()


def copy_with(model_dir: Path, folder: Path, **config) -> Path:
    """The model with other values in its config.json."""
    shutil.copytree(model_dir, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_classifier_equals_hugging_face(family, models, tmp_path):
    batch = tokenize(models(family), TEXTS)
    expected = reference(models(family), CLASSIFY, batch)
    for precision, share in (("f32", 0.01), ("f16", 0.03)):
        got = run(models(family), CLASSIFY, tmp_path / precision, batch, precision)
        assert got.dtype == np.float32 and got.shape == expected.shape
        assert np.abs(got - expected).max() < share * expected.std()
        assert (got.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_quantized_classifiers_are_close(family, models, tmp_path):
    batch = tokenize(models(family), TEXTS)
    expected = reference(models(family), CLASSIFY, batch)
    for precision, share in (("bf16", 0.2), ("q8_0", 0.4), ("q4_0", 3)):
        got = run(models(family), CLASSIFY, tmp_path / precision, batch, precision)
        assert np.isfinite(got).all()
        assert np.abs(got - expected).max() < share * expected.std()


TOO_WIDE = ("q1_0",)  # blocks wider than the model's 32 values, and no narrower type to fall to


@pytest.mark.parametrize("precision", [*FLOAT_FILE_TYPES, *QUANTIZED_FILE_TYPES])
def test_every_precision_works_or_says_why(precision, models, tmp_path):
    batch = tokenize(models("bert"), TEXTS[:2])
    if precision in TOO_WIDE:
        with pytest.raises(ModelError, match=f"{precision}: .*fallback"):
            run(models("bert"), CLASSIFY, tmp_path / "out", batch, precision)
        assert not list((tmp_path / "out").iterdir())
    elif needs_matrix(precision):  # test_gguf_imatrix.py makes these with one
        with pytest.raises(ModelError, match="without an importance matrix"):
            run(models("bert"), CLASSIFY, tmp_path / "out", batch, precision)
    else:
        assert np.isfinite(run(models("bert"), CLASSIFY, tmp_path / "out", batch, precision)).all()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_embeddings_equal_hugging_face(family, pooling, models, tmp_path):
    task = Task("feature-extraction", pooling=pooling)
    folder = models(family, bare=True)
    batch = tokenize(folder, TEXTS)
    expected = reference(folder, task, batch)
    got = run(folder, task, tmp_path / "out", batch)
    assert np.abs(got - expected).max() < 0.01 * expected.std()
    assert not np.allclose(np.linalg.norm(got, axis=1), 1, atol=0.1)  # the runtime normalizes


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_second_texts_carry_their_type(precision, models, tmp_path):
    task = Task("text-classification", LABELS, pair=True)
    batch = tokenize(models("bert"), TEXTS[:6], TEXTS[6:12])
    assert batch.type_ids.any()
    expected = reference(models("bert"), task, batch, type_ids=True)
    got = run(models("bert"), task, tmp_path / "out", batch, precision, types=True)
    share = {"f32": 0.01, "f16": 0.03, "bf16": 0.2, "q8_0": 0.4, "q4_0": 3}[precision]
    assert np.abs(got - expected).max() < share * expected.std()
    if precision == "f32":
        without = TokenBatch(batch.input_ids, batch.lengths, np.zeros_like(batch.type_ids))
        assert np.abs(reference(models("bert"), task, without) - expected).max() > 0.05


MODERN_HEADS = [
    {"classifier_pooling": "mean"},
    {"classifier_bias": True},
    {"classifier_activation": "silu", "classifier_pooling": "mean"},
    {"hidden_activation": "silu"},
]


@pytest.mark.parametrize("config", MODERN_HEADS)
def test_modernbert_variations(config, tmp_path):
    folder = tiny.make_model(tmp_path / "model", "modernbert", labels=LABELS, **config)
    batch = tokenize(folder, TEXTS)
    expected = reference(folder, CLASSIFY, batch)
    got = run(folder, CLASSIFY, tmp_path / "out", batch)
    assert np.abs(got - expected).max() < 0.01 * expected.std()


REFUSED = [
    ("bert", {"model_type": "gpt2"}, "bert, roberta, xlm-roberta, distilbert, modernbert"),
    ("bert", {"hidden_act": "relu"}, "hidden_act"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"num_attention_heads": 5}, "heads"),
    ("bert", {"num_attention_heads": "4"}, "num_attention_heads"),
    ("bert", {"num_hidden_layers": 3}, "encoder.layer.2"),
    ("distilbert", {"activation": "relu"}, "activation"),
    ("roberta", {"pad_token_id": None}, "pad_token_id"),
    ("modernbert", {"norm_bias": True}, "norm_bias"),
    ("modernbert", {"attention_bias": True}, "attention_bias"),
    ("modernbert", {"mlp_bias": True}, "mlp_bias"),
    ("modernbert", {"hidden_activation": "relu"}, "hidden_activation"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope"),
]


@pytest.mark.parametrize(("family", "config", "word"), REFUSED)
def test_traits_the_graph_ignores_are_refused(family, config, word, models, tmp_path):
    folder = copy_with(models(family), tmp_path / "model", **config)
    with pytest.raises(ModelError, match=word):
        lower(folder, CLASSIFY, tmp_path / "out", "q8_0")
    assert not list((tmp_path / "out").iterdir())


def test_requests_that_do_not_fit_the_model_are_refused(models, tmp_path):
    with pytest.raises(ModelError, match="3 outputs"):
        lower(models("bert"), Task("text-classification", ("a", "b")), tmp_path / "a")
    with pytest.raises(ModelError, match="max_tokens"):
        lower(models("bert"), CLASSIFY, tmp_path / "b", max_tokens=65)
    with pytest.raises(ModelError, match="q8_0"):
        lower(models("bert"), CLASSIFY, tmp_path / "c", "int8")
    with pytest.raises(ModelError, match="labels"):
        lower(models("bert"), Task("text-classification"), tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        lower(tmp_path / "empty", CLASSIFY, tmp_path / "e")


def test_sharded_bf16_checkpoints_and_spare_rows(models, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(models("bert"))
    model.resize_token_embeddings(model.config.vocab_size + 39, mean_resizing=False)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(models("bert")).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / "model.safetensors").exists()
    batch = tokenize(tmp_path / "m", TEXTS)
    expected = reference(tmp_path / "m", CLASSIFY, batch)
    got = run(tmp_path / "m", CLASSIFY, tmp_path / "out", batch)
    assert np.abs(got - expected).max() < 0.01 * expected.std()


def test_sessions_are_shared_by_threads_and_closed_twice(models, tmp_path):
    lowered = lower(models("roberta"), CLASSIFY, tmp_path)
    session = TARGET.open(tmp_path, variant_of(lowered), CLASSIFY, EngineOptions(threads=1))
    assert session.device in ("cpu", "cuda")
    batch = tokenize(models("roberta"), TEXTS * 4)  # several calls of llama.cpp
    together = session.run(batch)
    for i in (0, 17, 40):  # an answer does not depend on what else is in the batch
        one = TokenBatch(
            *(a[i : i + 1, : batch.lengths[i]] for a in (batch.input_ids,)),
            batch.lengths[i : i + 1],
            batch.type_ids[i : i + 1, : batch.lengths[i]],
        )
        assert np.abs(session.run(one) - together[i]).max() < 0.01 * together.std()
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(session.run(batch))) for _ in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all((r == together).all() for r in results)
    long = np.zeros((1, 61), np.int32)
    with pytest.raises(InputError, match="60"):
        session.run(TokenBatch(long, np.array([61], np.int32), long))
    bad = np.array([[0, 10**6, 2]], np.int32)
    with pytest.raises(InputError, match="token id"):
        session.run(TokenBatch(bad, np.array([3], np.int32), np.zeros_like(bad)))
    session.close()
    session.close()
    with pytest.raises(UsageError):
        session.run(batch)


def test_file_types_are_those_of_llama_cpp():
    assert TARGET.available() is None and "cpu" in TARGET.capabilities().devices
    known = {kind.name.split("_", 1)[-1].lower(): int(kind) for kind in LlamaFileType}
    rows = FLOAT_FILE_TYPES | QUANTIZED_FILE_TYPES
    unknown = rows.keys() - known.keys()
    assert unknown == {"q2_0"}  # which that package does not have yet
    assert {name: known[name] for name in rows.keys() - unknown} == {
        name: n for name, n in rows.items() if name not in unknown
    }


class Library:
    """As much of llama.cpp's interface as tells of devices."""

    def __init__(self, info: bytes) -> None:
        self.info = info

    def llama_supports_gpu_offload(self) -> bool:
        return True

    def llama_print_system_info(self) -> bytes:
        return self.info


def test_cuda_is_cuda_and_taken_when_asked_for():
    cuda, metal = Library(b"CUDA : ARCHS = 900 | CPU : AVX = 1 | "), Library(b"MTL : EMBED = 1 | ")
    assert has_cuda(cuda) and not has_cuda(metal)
    assert device_of(cuda, EngineOptions("cuda")) == "cuda"
    assert {device_of(x, EngineOptions()) for x in (cuda, metal)} == {"cpu"}
    with pytest.raises(TargetUnavailable, match="without CUDA"):
        device_of(metal, EngineOptions("cuda"))
