"""Predicting loads nothing of the compiler's, and asks nobody on a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

import edgelm

with edgelm.load(sys.argv[1], variant=sys.argv[2], threads=1) as model:
    answer = model.predict(["i lost my card", "我 的 卡"])[0]
assert answer.label in model.labels
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""
BANNED = {"torch", "transformers", "peft", "safetensors", "onnx", "onnxscript", "gguf", "datasets"}
OTHER_ENGINE = {"onnx-fp32": "llama_cpp", "gguf-f16": "onnxruntime"}


@pytest.mark.parametrize("variant", OTHER_ENGINE)
def test_predicting_is_thin_and_offline(classifier: Path, variant: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(classifier), variant],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert loaded & {*BANNED, OTHER_ENGINE[variant]} == set()
    assert "edgelm" in loaded
