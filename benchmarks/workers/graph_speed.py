"""One model file on ONNX Runtime or OpenVINO: given batches of tokens, or strings to labels.

Every contender gets the same tokens in the same batches, longest first, padded on the right. Asked
`side_by_side`, batches run at once, each on a thread of its own, else one after another on all.
Runs in edgelm's environment and in OpenVINO's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Options, options, read_texts, serve, versions
from tokenizers import Tokenizer

Feeds = dict[str, np.ndarray]
Run = Callable[[list[Feeds]], list[np.ndarray]]


class OnnxRuntime:
    """Sessions over one file."""

    package = "onnxruntime"

    def __init__(self, given: Options) -> None:
        self._given = given
        self._pool = ThreadPoolExecutor(given["threads"])
        self._alone, self._wide = self._open(1), self._open(given["threads"])
        self.inputs = [value.name for value in self._wide.get_inputs()]

    def _open(self, threads: int) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        off = self._given.get("disabled_optimizers")
        if off:
            options.add_session_config_entry("optimization.disable_specified_optimizers", off)
        return ort.InferenceSession(
            self._given["model"], options, providers=["CPUExecutionProvider"]
        )

    def one_by_one(self, batches: list[Feeds]) -> list[np.ndarray]:
        return [self._wide.run(None, batch)[0] for batch in batches]

    def side_by_side(self, batches: list[Feeds]) -> list[np.ndarray]:
        return list(self._pool.map(lambda batch: self._alone.run(None, batch)[0], batches))


class OpenVino:
    """Compiled once for latency, and once for as many streams as threads."""

    package = "openvino"

    def __init__(self, given: Options) -> None:
        import openvino

        core, threads = openvino.Core(), given["threads"]
        model = core.read_model(given["model"])
        common: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if given.get("float32"):  # else bf16 where the processor has it
            common["INFERENCE_PRECISION_HINT"] = "f32"
        self._wide = core.compile_model(
            model, "CPU", {**common, "PERFORMANCE_HINT": "LATENCY"}
        ).create_infer_request()
        streams = {**common, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads}
        self._queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", streams), threads)
        self._queue.set_callback(self._keep)
        self._answers: dict[int, np.ndarray] = {}
        self.inputs = [port.get_any_name() for port in model.inputs]

    def _keep(self, request: Any, index: int) -> None:
        self._answers[index] = request.get_output_tensor(0).data.copy()

    def one_by_one(self, batches: list[Feeds]) -> list[np.ndarray]:
        return [self._wide.infer(batch)[0].copy() for batch in batches]

    def side_by_side(self, batches: list[Feeds]) -> list[np.ndarray]:
        for i, batch in enumerate(batches):
            self._queue.start_async(batch, i)
        self._queue.wait_all()
        return [self._answers.pop(i) for i in range(len(batches))]


ENGINES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def pad(rows: list[list[int]], inputs: list[str]) -> Feeds:
    """Rows of one batch, int64 (B, T); BERT's padding is 0."""
    T = max(map(len, rows))
    ids = np.array([row + [0] * (T - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (T - len(row)) for row in rows], np.int64)
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in inputs}


def plan(rows: list[list[int]], size: int) -> list[list[int]]:
    """Indices of batches, longest first."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def main() -> None:
    given = options()
    engine = ENGINES[given["engine"]](given)
    texts = read_texts(given["texts"])
    folder = Path(given["hugging_face"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(given["max_tokens"])
    tokenizer.no_padding()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]

    def tokens() -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    rows = tokens()
    rng = np.random.default_rng(0)
    square = [rng.integers(1000, 20000, (32, 64)).tolist() for _ in range(4)]
    sets = {"square": [pad(part, engine.inputs) for part in square]}

    def batches(size: int) -> list[Feeds]:
        key = f"texts {size}"
        if key not in sets:
            sets[key] = [pad([rows[i] for i in part], engine.inputs) for part in plan(rows, size)]
        return sets[key]

    def work(question: Options) -> Any:
        run: Run = engine.side_by_side if question["side_by_side"] else engine.one_by_one
        if question["what"] == "square":
            return run(sets["square"])
        if question["what"] == "tokens":
            return run(batches(question["batch_size"]))
        found, parts = tokens(), []
        parts = plan(found, question["batch_size"])
        answers = run([pad([found[i] for i in part], engine.inputs) for part in parts])
        labels = [""] * len(texts)
        for part, logits in zip(parts, answers, strict=True):
            for i, best in zip(part, logits.argmax(axis=1).tolist(), strict=True):
                labels[i] = names[best]
        return labels

    labels = work({"what": "strings", "batch_size": 32, "side_by_side": False})
    for side in (False, True):
        work({"what": "square", "side_by_side": side})
    serve(work, labels=labels, versions=versions(engine.package))


if __name__ == "__main__":
    main()
