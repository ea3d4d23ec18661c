"""A user's own conversion script, with the command line of llama.cpp's convert_hf_to_gguf.py.

It knows two architectures that edgelm's tables lack: Granite, which is Llama with scales, and
CamemBERT, which is RoBERTa by another name. Like llama.cpp's it imports a package beside it.
"""

from __future__ import annotations

from pathlib import Path

SCRIPT = """\
import argparse
import shutil
import tempfile
from pathlib import Path

from conversion import convert

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16"])
args = parser.parse_args()
print("loading the model")
with tempfile.TemporaryDirectory() as folder:
    shutil.move(convert(args.model, Path(folder), args.outtype), args.outfile)
"""
CONVERSION = """\
import json

from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.bert import plan_bert
from edgelm.targets.gguf.decoders import DECODERS
from edgelm.targets.gguf.families import ENCODERS
from edgelm.targets.gguf.llama import Graph
from edgelm.targets.gguf.plan import Config


def scales(config, heads):
    return {
        "attention.scale": config.number("attention_multiplier", 1.0),
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "residual_scale": config.number("residual_multiplier", 1.0),
        "logit_scale": config.number("logits_scaling", 1.0),
    }


def plan_camembert(config, weights, task):
    return plan_bert(Config({**config.values, "model_type": "roberta"}), weights, task)


DECODERS["granite"] = Graph("granite", neighbours=True, more=scales)
ENCODERS["camembert"] = plan_camembert


def convert(model, folder, outtype):
    config = json.loads((model / "config.json").read_text())
    decodes = config["architectures"][0].endswith("ForCausalLM")
    task = Task("text-generation" if decodes else "feature-extraction")
    TARGET.lower(LowerRequest(model, task, TextLimits(32), outtype, folder))
    return folder / "model.gguf"
"""
GRANITE = dict(
    family="granite",
    attention_multiplier=0.4,
    embedding_multiplier=3.0,
    residual_multiplier=0.7,
    logits_scaling=2.0,
)


def write_checkout(folder: Path, script: str = SCRIPT) -> Path:
    """A folder like a checkout of llama.cpp, with the script in it."""
    (folder / "conversion").mkdir(parents=True)
    (folder / "conversion/__init__.py").write_text(CONVERSION, encoding="utf-8")
    (folder / "convert_hf_to_gguf.py").write_text(script, encoding="utf-8")
    return folder
