"""The ONNX target against the Hugging Face model on the same ragged, padded batches."""

from __future__ import annotations

import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import numpy_helper
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, ModelError, UsageError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest, Quantization
from edgelm.targets.onnx import attention, genai
from edgelm.targets.onnx.export import export
from edgelm.targets.onnx.lower import LOWERINGS
from edgelm.targets.onnx.precisions import PRECISIONS
from edgelm.targets.precision import AUTO, names_for

LABELS = ("card_lost", "refund", "other")
TEXTS = [
    "i lost my card",
    "refund please",
    "where is the parcel and how do you reset a password",
    "a",
]
CLASSIFY = Task("text-classification", LABELS)
POOLING = {
    "bert": "mean",
    "roberta": "cls",
    "xlm-roberta": "mean",
    "distilbert": "last",
    "modernbert": "mean",
}
ATTENTION = ("Attention", "MultiHeadAttention")


def tokenize(model_dir: Path, texts, pairs=None) -> TokenBatch:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = tokenizer(
        texts, pairs, padding=True, truncation=True, return_tensors="np", return_token_type_ids=True
    )
    return TokenBatch(
        rows["input_ids"].astype(np.int32),
        rows["attention_mask"].sum(1).astype(np.int32),
        rows["token_type_ids"].astype(np.int32) * rows["attention_mask"].astype(np.int32),
    )


def reference(model_dir: Path, task: Task, batch: TokenBatch, *, type_ids=False) -> np.ndarray:
    """Logits, or hidden states pooled with a plain loop, of the Hugging Face model."""
    auto = AutoModel if task.kind == "feature-extraction" else AutoModelForSequenceClassification
    model = auto.from_pretrained(model_dir, attn_implementation="eager").eval()
    inputs = {
        "input_ids": torch.tensor(batch.input_ids).long(),
        "attention_mask": torch.tensor(
            np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
        ).long(),
    }
    if type_ids:
        inputs["token_type_ids"] = torch.tensor(batch.type_ids).long()
    with torch.no_grad():
        output = model(**inputs)
    if task.kind == "text-classification":
        return output.logits.numpy()
    rows = [h[:n] for h, n in zip(output.last_hidden_state.numpy(), batch.lengths, strict=True)]
    pick = {"mean": lambda r: r.mean(0), "cls": lambda r: r[0], "last": lambda r: r[-1]}
    return np.stack([pick[task.pooling](row) for row in rows])


def lower(model_dir: Path, folder: Path, task=CLASSIFY, precision="fp32", **request):
    folder.mkdir()
    request = {"text": TextLimits(max_tokens=64)} | request
    return get_target("onnx").lower(
        LowerRequest(model_dir, task, precision=precision, folder=folder, **request)
    )


def open_(folder: Path, task=CLASSIFY, **options):
    variant = Variant("onnx", "onnx", "any", (FileEntry("model.onnx", "0" * 64, 1),))
    return get_target("onnx").open(folder, variant, task, EngineOptions(**options))


def ops(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_equal_the_reference(family, tmp_path):
    model_dir = tiny.make_model(tmp_path / "hf", family, labels=LABELS)
    pair_ids = family == "bert"
    task = Task("text-classification", LABELS, pair=pair_ids)
    lowered = lower(
        model_dir, tmp_path / "onnx", task, text=TextLimits(max_tokens=64, type_ids=pair_ids)
    )
    assert ("token_type_ids" in lowered.options["inputs"]) == pair_ids
    assert lowered.files == ("model.onnx",)
    session = open_(tmp_path / "onnx")
    batches = [tokenize(model_dir, TEXTS), tokenize(model_dir, TEXTS[:1])]
    if pair_ids:
        batches.append(tokenize(model_dir, TEXTS, TEXTS[::-1]))
        assert batches[-1].type_ids.any()
    for batch in batches:
        logits = session.run(batch)
        assert logits.dtype == np.float32
        expected = reference(model_dir, CLASSIFY, batch, type_ids=pair_ids)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    layers = 4 if family == "modernbert" else 2
    assert sum(op in ATTENTION for op in ops(tmp_path / "onnx")) == layers
    assert "IsNaN" not in ops(tmp_path / "onnx")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_vectors_equal_the_reference(family, tmp_path):
    task = Task("feature-extraction", pooling=POOLING[family])
    model_dir = tiny.make_model(tmp_path / "hf", family, labels=None)
    lower(model_dir, tmp_path / "onnx", task)
    batch = tokenize(model_dir, TEXTS)
    vectors = open_(tmp_path / "onnx", task).run(batch)
    np.testing.assert_allclose(vectors, reference(model_dir, task, batch), atol=1e-4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT wide enough for quantization to mean something, and batches of its texts."""
    model_dir = tmp_path_factory.mktemp("bert") / "hf"
    tokenizer = tiny.make_tokenizer("bert")
    config = tiny.make_config("bert", len(tokenizer), tokenizer.pad_token_id, num_labels=3)
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(tiny.WORDS, n)) for n in rng.integers(1, 24, 96)]
    return model_dir, tokenize(model_dir, texts)


def size(folder: Path) -> int:
    return (folder / "model.onnx").stat().st_size


@pytest.fixture(scope="module")
def exported(bert):
    return export(bert[0], CLASSIFY, type_ids=False)


@pytest.fixture
def export_once(exported, monkeypatch):
    """Lowering `bert` skips the seconds that its export takes."""
    monkeypatch.setattr(
        "edgelm.targets.onnx.lower.export", lambda *args, **options: exported.clone()
    )


@pytest.fixture(scope="module")
def fp32(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp32") / "onnx"
    lower(bert[0], folder)
    return folder


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    """Near enough for 8 bits: labels mostly equal, errors small beside the logits' spread."""
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.9
    assert np.abs(logits - expected).mean() < 0.15 * expected.std()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["text-classification", "feature-extraction"])
def test_fp16_is_a_graph_of_half_floats(family, kind, tmp_path):
    task = CLASSIFY
    if kind == "feature-extraction":
        task = Task(kind, pooling=POOLING[family])
    model_dir = tiny.make_model(tmp_path / "hf", family, labels=LABELS if task.labels else None)
    lower(model_dir, tmp_path / "onnx", task, precision="fp16")
    batch = tokenize(model_dir, TEXTS)
    rows = open_(tmp_path / "onnx", task).run(batch)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, reference(model_dir, task, batch), atol=0.02)
    made = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "onnx" / "model.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in made.graph.value_info}
    types |= {i.name: i.data_type for i in made.graph.initializer}
    products = [n for n in made.graph.node if n.op_type == "MatMul" and n.input[1] in types]
    weights = [types[n.input[1]] for n in products]
    assert weights.count(onnx.TensorProto.FLOAT16) >= len(weights) - 1  # pooling by mean is wide
    large = [i for i in made.graph.initializer if np.prod(i.dims) >= 1024]
    assert all(
        i.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64)
        for i in large
        if "cos" not in i.name and "sin" not in i.name
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(folder / "model.onnx").graph
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


@pytest.mark.usefixtures("export_once")
def test_int8_agrees_and_is_small(bert, fp32, tmp_path):
    lower(bert[0], tmp_path / "onnx", precision="int8")
    assert size(tmp_path / "onnx") < 0.5 * size(fp32)
    logits = open_(tmp_path / "onnx").run(bert[1])
    assert_close(logits, open_(fp32).run(bert[1]))
    found = {n: w for n, w in weights(tmp_path / "onnx").items() if w.dtype == np.int8}
    products = [w for n, w in found.items() if "embedding" not in n]
    assert len(found) > len(products) >= 2 * 4 + 2  # tables too
    assert all(np.abs(w).max() <= 63 for w in products)


@pytest.mark.parametrize("family", ["distilbert", "modernbert"])
def test_int8_attention_is_one_operator_where_it_has_an_8_bit_form(family, tmp_path):
    model_dir = tiny.make_model(tmp_path / "hf", family, labels=LABELS)
    lower(model_dir, tmp_path / "onnx", precision="int8")
    expected = {"distilbert": "QAttention", "modernbert": "MultiHeadAttention"}[family]
    found = [op for op in ops(tmp_path / "onnx") if op.endswith("Attention")]
    assert set(found) == {expected}
    batch = tokenize(model_dir, TEXTS)
    logits, exact = open_(tmp_path / "onnx").run(batch), reference(model_dir, CLASSIFY, batch)
    assert np.abs(logits - exact).mean() < 0.15 * exact.std()


def test_threads_change_speed_and_nothing_else(bert, fp32):
    batch = bert[1]
    expected = open_(fp32, threads=1).run(batch)
    session = open_(fp32, threads=2)
    assert session.parallel == 2
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda _: session.run(batch, shared=True), range(4)))
    for logits in (*parts, session.run(batch)):  # the last one comes alone, and is long
        np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.usefixtures("export_once")
def test_int8_uses_all_bits_on_request(bert, tmp_path):
    lower(
        bert[0],
        tmp_path / "onnx",
        precision="int8",
        quantization=Quantization(reduce_range=False),
    )
    largest = [
        np.abs(w).max()
        for n, w in weights(tmp_path / "onnx").items()
        if w.dtype == np.int8 and "embedding" not in n
    ]
    assert set(largest) == {127}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
@pytest.mark.usefixtures("export_once")
def test_int8_static_agrees_and_does_not_depend_on_the_batch(bert, fp32, tmp_path, method):
    batch = bert[1]
    lower(
        bert[0],
        tmp_path / "onnx",
        precision="int8-static",
        quantization=Quantization(calibration=method),
        calibration=lambda: [batch],
    )
    session = open_(tmp_path / "onnx")
    logits = session.run(batch)
    assert_close(logits, open_(fp32).run(batch))
    n = int(batch.lengths[0])
    alone = TokenBatch(batch.input_ids[:1, :n], batch.lengths[:1], batch.type_ids[:1, :n])
    np.testing.assert_allclose(session.run(alone), logits[:1], atol=1e-5)


@pytest.mark.usefixtures("export_once")
def test_int8_static_without_texts_is_a_model_error(bert, tmp_path):
    with pytest.raises(ModelError, match="calibration"):
        lower(bert[0], tmp_path / "onnx", precision="int8-static")


def test_a_broken_file_is_a_bundle_error(fp32, tmp_path):
    good = (fp32 / "model.onnx").read_bytes()
    for broken in (b"", b"not a model", good[: len(good) // 2], good[:200] + good[300:]):
        (tmp_path / "model.onnx").write_bytes(broken)
        with pytest.raises(BundleError):
            open_(tmp_path)


def test_missing_file_and_wrong_task_are_bundle_errors(fp32, tmp_path):
    with pytest.raises(BundleError):
        open_(tmp_path)
    with pytest.raises(BundleError, match="no output embedding"):
        open_(fp32, Task("feature-extraction"))


def test_attention_that_does_not_fit_is_exported_as_it_is(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise attention.Inexpressible("something new")

    monkeypatch.setattr(attention, "_attention", refuse)
    model_dir = tiny.make_model(tmp_path / "hf", "distilbert", labels=LABELS)
    lower(model_dir, tmp_path / "onnx")
    assert not set(ATTENTION) & set(ops(tmp_path / "onnx"))
    batch = tokenize(model_dir, TEXTS)
    expected = reference(model_dir, CLASSIFY, batch)
    np.testing.assert_allclose(open_(tmp_path / "onnx").run(batch), expected, atol=1e-4)


def test_a_directory_without_a_model_is_a_model_error(tmp_path):
    with pytest.raises(ModelError):
        lower(tmp_path, tmp_path / "onnx")


def test_a_session_says_what_it_cannot_do(bert, fp32):
    session = open_(fp32)
    ids = np.full((1, 600), 5, np.int32)
    for bad in (ids, ids[:, :3] + 10**6):  # positions, then tokens beyond the tables
        with pytest.raises(BundleError, match="cannot take the tokens") as err:
            session.run(TokenBatch(bad, np.array([bad.shape[1]], np.int32), np.zeros_like(bad)))
        assert "max_tokens" in str(err.value.hint)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(bert[1])
    with pytest.raises(BundleError, match="3 outputs for 2 labels"):
        open_(fp32, Task("text-classification", ("a", "b")))
    with pytest.raises(UsageError, match="threads: 0"):
        open_(fp32, threads=0)


def test_a_broken_installation_is_a_reason(monkeypatch):
    target = get_target("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    monkeypatch.setattr("edgelm.targets.onnx._is_installed", lambda package: True)
    assert "onnxruntime cannot be loaded" in str(target.available())
    assert target.capabilities().devices == ("cpu",)


def test_every_precision_has_its_lowering():
    for task, lowerings in (
        ("text-classification", LOWERINGS),
        ("feature-extraction", LOWERINGS),
        ("text-generation", genai.LOWERINGS),
    ):
        assert lowerings.keys() == set(names_for(PRECISIONS, task)) - {AUTO}
