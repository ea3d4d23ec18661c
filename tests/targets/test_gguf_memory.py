"""Lowering reads and writes blocks of rows: its memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import tiny_decoders

# Lowers a model and says how many megabytes that took at most.
PEAK = """
import sys
from pathlib import Path
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
folder, precision = Path(sys.argv[1]), sys.argv[2]
task = Task("text-generation")
TARGET.lower(LowerRequest(folder, task, TextLimits(64), precision, folder))
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def hollow_model(folder: Path, **dims) -> int:
    """A checkpoint in bfloat16 that is one hole on disk; returns its largest tensor's bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_decoders.make_decoder(folder, "llama-linear")
    config = AutoConfig.from_pretrained(folder)
    config.update(dims)
    with torch.device("meta"):
        shapes = {
            k: list(v.shape)
            for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    config.save_pretrained(folder)
    assert end > 10**9
    return 2 * max(prod(shape) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize("precision", ["f16", "bf16", "f32"])
def test_memory_does_not_grow_with_the_model(precision, tmp_path):
    dims = dict(hidden_size=1024, head_dim=256, intermediate_size=8192, vocab_size=100_000)
    largest = hollow_model(tmp_path, num_hidden_layers=12, **dims)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), precision],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < largest / 2**20, f"{done.stdout} MB"
