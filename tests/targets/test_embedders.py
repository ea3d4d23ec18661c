"""Vectors of decoders on both targets: the Hugging Face model's hidden states, pooled by numpy.

The oracle sees each text alone and without padding. llama.cpp keeps keys and values at float16, so
even of an f32 file up to 1 % of the values' spread is allowed, as in test_gguf.py.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_decoders
import torch
from gguf import GGUFReader
from gguf_oracle import llama_vectors
from safetensors.torch import load_file
from transformers import AutoModel

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.manifest import FileEntry, Pooling, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest
from edgelm.targets.causal import is_causal
from edgelm.targets.gguf import bindings, hidden
from edgelm.targets.gguf.unpack import unpack

SHORT: dict[str, dict[str, int]] = {  # an export takes a second a layer
    "llama": {"num_hidden_layers": 2},
    "qwen3": {"num_hidden_layers": 2},
    "gemma3-pattern": {},
}
LENGTHS = (1, 3, 17, 40)  # Gemma's window is 8
MEAN, LAST, CLS = (
    Task("feature-extraction", pooling=pooling, dimensions=64)
    for pooling in ("mean", "last", "cls")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> the directory of a tiny decoder, made once."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            found[name] = tiny_decoders.make_decoder(folder, name, **SHORT.get(name, {}))
        return found[name]

    return get


def rows_of(lengths=LENGTHS) -> list[list[int]]:
    """Seeded token ids."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 400, n).tolist() for n in lengths]


def batch_of(rows) -> TokenBatch:
    """Padded on the right, with a token that must not matter."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), lengths.max()), 7, np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return TokenBatch(ids, lengths, np.zeros_like(ids))


def expected(model_dir: Path, rows, pooling: Pooling) -> np.ndarray:
    """(N, H)"""
    model = AutoModel.from_pretrained(
        model_dir, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        hidden = [model(torch.tensor([row])).last_hidden_state[0].numpy() for row in rows]
    return np.stack([h.mean(0) if pooling == "mean" else h[-1] for h in hidden])


def open_(target: str, model_dir: Path, folder: Path, task: Task, precision: str, max_tokens=64):
    folder.mkdir()
    request = LowerRequest(model_dir, task, TextLimits(max_tokens), precision, folder)
    lowered = get_target(target).lower(request)
    files = tuple(FileEntry(f, "0" * 64, 1) for f in lowered.files)
    variant = Variant("v", target, precision, files, lowered.options, lowered.engine)
    return get_target(target).open(folder, variant, task, EngineOptions("cpu", 1))


def answer(session, batch: TokenBatch) -> np.ndarray:
    try:
        return session.run(batch)
    finally:
        session.close()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def exported():
    """What was exported, by model and pooling."""
    return {}


@pytest.fixture
def export_once(exported, monkeypatch):
    """The same model is exported once for all precisions."""
    from edgelm.targets.onnx.export import export

    def once(model_dir, task, **options):
        key = model_dir, task.pooling
        if key not in exported:
            exported[key] = export(model_dir, task, **options)
        return exported[key].clone()

    monkeypatch.setattr("edgelm.targets.onnx.lower.export", once)


PAIRS = [("llama", MEAN), ("llama", LAST), ("qwen3", LAST), ("gemma3-pattern", MEAN)]


@pytest.mark.parametrize(("name", "task"), PAIRS)
@pytest.mark.usefixtures("export_once")
def test_onnx_equals_hugging_face(name, task, made, tmp_path):
    rows = rows_of()
    vectors = answer(open_("onnx", made(name), tmp_path / "o", task, "fp32"), batch_of(rows))
    np.testing.assert_allclose(vectors, expected(made(name), rows, task.pooling), atol=1e-4)


@pytest.mark.parametrize("task", [MEAN, LAST], ids=lambda task: task.pooling)
@pytest.mark.parametrize("name", tiny_decoders.FAMILIES)
def test_gguf_equals_hugging_face(name, task, made, tmp_path):
    rows = rows_of()
    theirs = expected(made(name), rows, task.pooling)
    vectors = answer(open_("gguf", made(name), tmp_path / "g", task, "f32"), batch_of(rows))
    assert vectors.shape == theirs.shape and vectors.dtype == np.float32
    assert np.abs(vectors - theirs).max() < 0.02 * theirs.std()


@pytest.mark.parametrize("task", [MEAN, LAST], ids=lambda task: task.pooling)
@pytest.mark.parametrize("name", ["llama", "gemma3-pattern"])
def test_gguf_reads_long_texts_in_parts(name, task, made, tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "TOKENS_A_CALL", 32)
    rows = rows_of((64, 5, 33, 16, 16))
    theirs = expected(made(name), rows, task.pooling)
    session = open_("gguf", made(name), tmp_path / "g", task, "f32")
    first = session.run(batch_of(rows))
    again = answer(session, batch_of(rows[::-1]))  # nothing of the first call is left
    for vectors in (first, again[::-1]):
        assert np.abs(vectors - theirs).max() < 0.02 * theirs.std()


def test_an_interrupt_is_not_lost(made, tmp_path, monkeypatch):
    """llama.cpp calls back into Python, where an exception would only be printed."""
    batch, due = batch_of(rows_of()), [signal.SIGINT]

    def interrupt(_tensor: int, _ask: bool, _user_data: object) -> bool:
        if due:
            signal.pthread_kill(threading.main_thread().ident, due.pop())
        return False

    plain = answer(open_("gguf", made("llama"), tmp_path / "plain", MEAN, "f32"), batch)
    callback = bindings.load().ggml_backend_sched_eval_callback(interrupt)
    monkeypatch.setattr(hidden, "stop_before_logits", lambda library: callback)
    session = open_("gguf", made("llama"), tmp_path / "g", MEAN, "f32")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run(batch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (answer(session, batch) == plain).all()


def test_llama_cpp_stops_before_the_logits_where_it_can(made, tmp_path, monkeypatch):
    library, rows = bindings.load(), rows_of((17,))
    found = []
    for stop in (hidden.stop_before_logits, lambda lib: lib.ggml_backend_sched_eval_callback()):
        monkeypatch.setattr(hidden, "stop_before_logits", stop)
        session = open_("gguf", made("llama"), tmp_path / str(len(found)), LAST, "f32")
        vectors = session.run(batch_of(rows))
        logits = library.llama_get_logits(session._context)
        found.append((vectors, np.ctypeslib.as_array(logits, shape=(17, 400)).copy()))
        session.close()
    (stopped, without), (whole, logits) = found
    assert (stopped == whole).all()
    assert not np.allclose(without, logits)


@pytest.mark.parametrize("task", [MEAN, LAST], ids=lambda task: task.pooling)
def test_llama_cpp_itself_pools_the_file_alike(task, made, tmp_path):
    """Opened with embeddings on and nothing else said; there is no head in the file."""
    rows = rows_of((17,))
    open_("gguf", made("llama"), tmp_path / "g", task, "f32").close()
    path = tmp_path / "g" / "model.gguf"
    assert "lm_head.weight" in load_file(made("llama") / "model.safetensors")
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(path).tensors}
    theirs = expected(made("llama"), rows, task.pooling)
    assert np.abs(llama_vectors(path, rows[0]) - theirs[0]).max() < 0.02 * theirs.std()


@pytest.mark.usefixtures("export_once")
def test_quantized_files_are_close(made, tmp_path):
    rows = rows_of()
    theirs = expected(made("llama"), rows, "last")
    found = {
        precision: answer(
            open_(target, made("llama"), tmp_path / precision, LAST, precision), batch_of(rows)
        )
        for target, precision in (
            ("gguf", "q8_0"),
            ("onnx", "fp16"),
            ("onnx", "int8"),
            ("onnx", "int4"),
        )
    }
    least = {"q8_0": 0.999, "fp16": 0.999, "int8": 0.98, "int4": 0.9}
    for precision, vectors in found.items():
        assert cosines(vectors, theirs).min() > least[precision], precision
    sizes = {p: (tmp_path / p / "model.onnx").stat().st_size for p in ("fp16", "int8", "int4")}
    assert sizes["int4"] < sizes["int8"] < sizes["fp16"]
    ops = Counter(n.op_type for n in onnx.load(tmp_path / "int8" / "model.onnx").graph.node)
    assert ops["MatMulNBits"] == 2  # behind the gate, one a layer
    assert ops["MatMulInteger"] == 2 * 6 and ops["MatMul"] <= 1  # rotary positions


def test_a_file_says_how_it_pools_when_it_comes_back(made, tmp_path):
    open_("gguf", made("qwen3"), tmp_path / "g", LAST, "f32").close()
    (tmp_path / "back").mkdir()
    unpack(tmp_path / "g" / "model.gguf", tmp_path / "back", lambda done, total: None)
    from edgelm.compiler.passes.intake import read_source

    source = read_source(tmp_path / "back")
    assert (source.pooling, source.normalize) == ("last", False)


def test_the_first_token_is_refused(made, tmp_path):
    with pytest.raises(ModelError, match="sees nothing but itself") as err:
        open_("gguf", made("qwen3"), tmp_path / "g", CLS, "f32")
    assert err.value.hint == "take last or mean"
    open_("gguf", made("qwen3"), tmp_path / "h", LAST, "f32").close()
    options = {"max_tokens": 64, "pooling": "cls"}
    variant = Variant("v", "gguf", "f32", (FileEntry("model.gguf", "0" * 64, 1),), options)
    with pytest.raises(BundleError, match="'cls' pooling"):
        get_target("gguf").open(tmp_path / "h", variant, CLS, EngineOptions("cpu", 1))


def test_what_looks_back_only(made, tmp_path):
    import tiny

    assert all(is_causal(made(name)) for name in tiny_decoders.FAMILIES)
    for family in tiny.FAMILIES:
        assert not is_causal(tiny.make_model(tmp_path / family, family, labels=None))
    both_ways = tiny_decoders.make_decoder(
        tmp_path / "g", "gemma3", use_bidirectional_attention=True, num_hidden_layers=1
    )
    assert not is_causal(both_ways)
    shutil.rmtree(both_ways)
    with pytest.raises(ModelError, match="its config cannot be loaded"):
        is_causal(both_ways)
