"""onnxruntime-genai's model builder, run in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from edgelm.runtime.errors import ModelError
from edgelm.targets.child import run_python

MODULE = "onnxruntime_genai.models.builder"


def build(model_dir: Path, folder: Path) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer into `folder`: in
    float32, for CPUs.

    Raises ModelError with the builder's last line."""
    # each layer keeps all its keys and values, so that a sequence can be cut and extended again
    extra = ("hf_token=false", "windowed_kv_cache=false")
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["-m", MODULE, "-i", str(model_dir.resolve()), "-o", str(folder.resolve())]
        arguments += ["-p", "fp32", "-e", "cpu", "-c", cache, "--extra_options", *extra]
        done = run_python(arguments, {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    if done.code != 0:
        raise ModelError(
            f"{model_dir}: onnxruntime-genai cannot build it: {done.lines[-1]}",
            hint="the gguf target may know the architecture",
        )
