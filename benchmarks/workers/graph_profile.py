"""Where an ONNX file's time goes, by operator, beside what the machine's products reach at best."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from protocol import Options, answer_all, options, versions

# (M, K, N) of products that are large enough to fill the machine, and fit its caches or do not.
SHAPES = ((2048, 384, 1536), (2048, 1536, 384), (1024, 1024, 1024), (2048, 2048, 2048))
SECONDS = 0.5
# Operators that hold a product of their inputs 0 and 1, or of 0 and the packed weight.
PRODUCTS = {
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "Attention", "QAttention",
}  # fmt: skip


def session(model: Any, given: Options, profile: str | None = None) -> ort.InferenceSession:
    made = ort.SessionOptions()
    made.intra_op_num_threads = given["threads"]
    made.log_severity_level = 3
    if given.get("disabled_optimizers"):
        made.add_session_config_entry(
            "optimization.disable_specified_optimizers", given["disabled_optimizers"]
        )
    if profile is not None:
        made.enable_profiling, made.profile_file_prefix = True, profile
    return ort.InferenceSession(model, made, providers=["CPUExecutionProvider"])


def peak(given: Options, *, int8: bool) -> float:
    """The most operations (2 M K N) a second of a product by a constant, over SHAPES."""
    return max(_speed(given, *shape, int8=int8) for shape in SHAPES)


def _speed(given: Options, M: int, K: int, N: int, *, int8: bool) -> float:
    rng = np.random.default_rng(0)
    if int8:
        kinds, op = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32), "MatMulInteger"
        x = rng.integers(0, 255, (M, K), np.uint8)
        w = rng.integers(-63, 63, (K, N), np.int8)
    else:
        kinds, op = (TensorProto.FLOAT,) * 3, "MatMul"
        x = rng.standard_normal((M, K)).astype(np.float32)
        w = rng.standard_normal((K, N)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [M, K])],
        [helper.make_tensor_value_info("y", kinds[2], [M, N])],
        [helper.make_tensor("w", kinds[1], [K, N], w.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    run = session(model.SerializeToString(), {"threads": given["threads"]})
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        run.run(None, {"x": x})
        best = min(best, time.perf_counter() - started)
    return 2 * M * K * N / best


def by_operator(given: Options) -> dict[str, dict[str, float]]:
    """Seconds and operations of one batch of 32 x 64 tokens, the median of several runs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (32, 64))
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    runs = given["runs"]
    with tempfile.TemporaryDirectory() as name:
        profiled = session(given["model"], given, profile=str(Path(name) / "profile"))
        feeds = {value.name: known[value.name] for value in profiled.get_inputs()}
        for _ in range(runs + 2):
            profiled.run(None, feeds)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, tuple[str, float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            told = event["args"]
            nodes[event["name"]].append(event["dur"] * 1e-6)
            facts[event["name"]] = told["op_name"], _operations(told)
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "operations": 0.0})
    for node, seconds in nodes.items():
        op, operations = facts[node]
        found[op]["seconds"] += float(np.median(seconds[2:]))
        found[op]["operations"] += operations
    return dict(found)


def _operations(told: dict[str, Any]) -> float:
    """2 M K N of a node's product; of attention by its queries, keys and values too."""
    op = told["op_name"]
    if op not in PRODUCTS and op != "MultiHeadAttention":
        return 0.0
    shapes = [next(iter(one.values())) for one in told["input_type_shape"]]
    (out,) = [next(iter(one.values())) for one in told["output_type_shape"]][:1]
    if op == "MultiHeadAttention":
        B, T, H = shapes[0]
        return 4.0 * B * T * T * H
    rows = np.prod(shapes[0][:-1])
    if op in ("Attention", "QAttention"):
        B, T, H = out
        return float(2 * rows * shapes[0][-1] * 3 * H + 4 * B * T * T * H)
    return float(2 * np.prod(out) * shapes[0][-1])


def main() -> None:
    given = options()

    def work(question: Options) -> dict[str, Any]:
        if "model" not in question:
            return {"float32": peak(given, int8=False), "int8": peak(given, int8=True)}
        return {"operators": by_operator({**given, **question})}

    answer_all(work, versions=versions("onnxruntime"))


if __name__ == "__main__":
    main()
