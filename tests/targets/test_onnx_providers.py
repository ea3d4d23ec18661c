"""Which execution providers are tried, and what is said where one does not start."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, save

from edgelm.runtime.engine import BatchLimits, EngineOptions, TokenBatch, split_device
from edgelm.runtime.errors import TargetUnavailable, UsageError
from edgelm.runtime.manifest import FileEntry, Manifest, Task, TextLimits, Variant
from edgelm.runtime.select import best_on_gpu
from edgelm.targets import get_target
from edgelm.targets.onnx import engine, providers
from edgelm.targets.onnx.binding import BoundBuffers
from edgelm.targets.onnx.providers import CPU, CUDA, TENSORRT, placements

ALL, PLAIN = (TENSORRT, CUDA, CPU), (CPU,)
TASK = Task("text-classification", tuple("abcde"))


def test_devices() -> None:
    assert split_device("cuda") == ("cuda", None)
    assert split_device("tensorrt:12") == ("tensorrt", 12)
    for bad in ("tpu", "", "CUDA", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1234"):
        with pytest.raises(UsageError, match="device: "):
            split_device(bad)
    with pytest.raises(UsageError, match="'cpu:1' is none of auto, cpu, cuda, tensorrt"):
        EngineOptions("cpu:1")


@pytest.mark.parametrize(
    ("device", "precision", "available", "tried"),
    [
        ("cpu", "fp32", ALL, [("cpu", [CPU])]),
        ("auto", "fp32", PLAIN, [("cpu", [CPU])]),
        ("auto", "fp16", ALL, [("cuda", [CUDA, CPU]), ("cpu", [CPU])]),
        ("auto", "int8", ALL, [("cpu", [CPU])]),
        ("cuda", "int8", ALL, [("cuda", [CUDA, CPU])]),
        ("cuda:1", "fp32", ALL, [("cuda:1", [CUDA, CPU])]),
        ("tensorrt", "fp16", ALL, [("tensorrt", [TENSORRT, CUDA, CPU])]),
        ("tensorrt", "fp32", (TENSORRT, CPU), [("tensorrt", [TENSORRT, CPU])]),
    ],
)
def test_what_is_tried(device: str, precision: str, available, tried) -> None:
    found = placements(device, precision, available)
    assert [(p.device, [name for name, _ in p.providers]) for p in found] == tried
    assert [p.on_gpu for p in found] == [p.device != "cpu" for p in found]


def test_options_of_the_providers() -> None:
    (place,) = placements("tensorrt:1", "fp16", ALL)
    options = dict(place.providers)
    assert place.gpu_index == 1
    assert options[CUDA] == {"device_id": "1", "use_tf32": "0"}
    assert options[TENSORRT]["trt_fp16_enable"] == options[TENSORRT]["device_id"] == "1"
    assert options[TENSORRT]["trt_engine_cache_enable"] == "0"  # an engine is code
    assert options[CPU] == {}


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_device_that_it_was_not_built_for(device: str) -> None:
    with pytest.raises(TargetUnavailable, match="this ONNX Runtime has no") as err:
        placements(device, "fp32", PLAIN)
    assert "pip install onnxruntime-gpu" in str(err.value.hint)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose model.onnx adds the ids and the mask up, times 1 to 5."""
    shape = ["B", "T"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 5])
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "axis"], ["rows"], keepdims=1),
        helper.make_node("MatMul", ["rows", "factors"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("factors", TensorProto.FLOAT, [1, 5], [1, 2, 3, 4, 5]),
    ]
    graph = helper.make_graph(nodes, "sums", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 21)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    return tmp_path


def batch(B: int, T: int, seed: int = 0) -> TokenBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, B).astype(np.int32)
    lengths[0] = T
    ids = rng.integers(0, 100, (B, T)).astype(np.int32)
    return TokenBatch(ids, lengths, np.zeros((B, T), np.int32))


def sums(given: TokenBatch) -> np.ndarray:
    total = given.input_ids.sum(1) + given.lengths
    return (total[:, None] * np.arange(1, 6)).astype(np.float32)


def open_(folder: Path, device: str, precision: str = "fp32") -> engine.OnnxSession:
    variant = Variant("onnx", "onnx", precision, (FileEntry("model.onnx", "0" * 64, 1),))
    return engine.OnnxSession(folder, variant, TASK, EngineOptions(device))


@pytest.fixture
def lists_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that names CUDA and cannot start it, as its GPU build on such a machine."""
    if CUDA in ort.get_available_providers():
        if providers.why_not(CUDA) is None:
            pytest.skip("CUDA may start here")
    else:
        monkeypatch.setattr(engine, "providers", lambda: ALL)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("lists_cuda")
def test_auto_falls_back_to_the_cpu_and_says_so(model: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "edgelm"):
        session = open_(model, "auto")
    (said,) = caplog.messages
    assert said.startswith("no GPU is used, the CPU is: CUDA: ")
    assert session.device == "cpu"
    given = batch(3, 7)
    np.testing.assert_array_equal(session.run(given), sums(given))


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("lists_cuda")
@pytest.mark.parametrize("device", ["cuda", "tensorrt:1"])
def test_a_gpu_asked_for_by_name_does_not_fall_back(model: Path, device: str) -> None:
    with pytest.raises(TargetUnavailable, match=f"device {device}: .*: ") as err:
        open_(model, device)
    assert "or use device cpu" in str(err.value.hint)


def test_a_target_says_why_a_device_is_not_there() -> None:
    able = get_target("onnx").capabilities()
    for device in ("cuda", "tensorrt"):
        assert (device in able.devices) != (device in able.absent)


def test_on_a_gpu_float_variants_are_preferred() -> None:
    def bundle(*names: str) -> tuple[Manifest, list[Variant]]:
        variants = [Variant(n, *n.split("-", 1), ()) for n in names]
        manifest = Manifest(1, "m", "1", 1, TASK, TextLimits(8), (), tuple(variants))
        return manifest, variants

    manifest, variants = bundle("onnx-int8", "onnx-fp32", "onnx-fp16", "gguf-q8_0")
    assert best_on_gpu(manifest, variants[0]).name == "onnx-fp16"
    assert best_on_gpu(manifest, variants[3]).name == "gguf-q8_0"
    manifest, variants = bundle("onnx-int8", "onnx-fp32")
    assert best_on_gpu(manifest, variants[0]).name == "onnx-fp32"


def test_bound_buffers_hold_every_batch_within_the_limits(model: Path) -> None:
    session = ort.InferenceSession(model / "model.onnx", providers=[CPU])
    bound = BoundBuffers(session, "logits", 5, BatchLimits(4, 64), "cpu", 0)
    kept = []
    for i, (B, T) in enumerate([(4, 16), (1, 64), (2, 3), (4, 1)]):
        given = batch(B, T, seed=i)
        assert bound.fits(given)
        kept.append((bound.run(given), sums(given)))
    for rows, expected in kept:  # later batches left the earlier answers alone
        np.testing.assert_array_equal(rows, expected)
    assert not bound.fits(batch(5, 1))
    assert not bound.fits(batch(4, 17))


def test_a_session_with_buffers_answers_from_many_threads(model: Path) -> None:
    session = open_(model, "cpu")
    session._bound = BoundBuffers(  # as on a GPU
        session._session, "logits", 5, BatchLimits(8, 256), "cpu", 0
    )
    given = [batch(1 + i % 8, 1 + i % 30, seed=i) for i in range(64)]
    given.append(batch(9, 40))  # does not fit, and is answered all the same
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(session.run, given))
    for one, rows in zip(given, found, strict=True):
        np.testing.assert_array_equal(rows, sums(one))


def test_nothing_is_printed_while_libraries_are_looked_for(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "nvidia").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    providers.preload()
    assert capsys.readouterr().out == ""
    assert "ONNX Runtime brings no" in str(providers.why_not(CUDA)) or sys.platform == "win32"
