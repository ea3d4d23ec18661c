"""onnxruntime-genai's model builder, run in a process of its own.

The builder prints what it does, sets up the root logger and puts a folder of its own on sys.path;
and it may fetch what it misses from the hub. None of that is to happen in the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from edgelm.runtime.errors import ModelError

MODULE = "onnxruntime_genai.models.builder"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def build(model_dir: Path, folder: Path) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer into `folder`: in
    float32, for CPUs.

    Raises ModelError with the builder's last line."""
    # each layer keeps all its keys and values, so that a sequence can be cut and extended again
    extra = ("hf_token=false", "windowed_kv_cache=false")
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", MODULE, "-i", str(model_dir.resolve())]
        command += ["-o", str(folder.resolve()), "-p", "fp32", "-e", "cpu"]
        command += ["-c", str(Path(scratch) / "cache"), "--extra_options", *extra]
        environment = os.environ | _OFFLINE | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        # run in an empty folder: Python looks for modules where it is started
        done = subprocess.run(
            command,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise ModelError(
            f"{model_dir}: onnxruntime-genai cannot build it: {lines[-1]}",
            hint="the gguf target may know the architecture",
        )
