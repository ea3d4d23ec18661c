"""edgelm's own finetune pass on a context of its own, with an empty cache: one epoch a round."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from protocol import Options, options, say

from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context
from edgelm.compiler.hf import require_compile_extra, versions
from edgelm.compiler.passes.finetune import Finetune
from edgelm.compiler.passes.intake import Intake
from edgelm.compiler.passes.prepare import Prepare
from edgelm.compiler.recipe import load_recipe
from edgelm.runtime.progress import Progress


def train(given: Options) -> dict[str, Any]:
    """The pass's own history: seconds, precision, trained parameters, loss."""
    overrides = {
        "model": given["model"],
        "data.train": given["train"],
        "data.eval": given["eval"],
        "train.epochs": 1.0,
        "train.early_stop": 0,
        "train.batch_size": given["batch_size"],
        "train.precision": given["precision"],
        "max_tokens": given["max_tokens"],
        "threads": given["threads"],
    }
    with tempfile.TemporaryDirectory() as folder:
        context = Context(load_recipe(None, overrides), StageCache(Path(folder)), Progress("quiet"))
        for step in (Intake(), Prepare(), Finetune()):
            step.execute(context)
        assert context.data is not None
        history = json.loads(
            (Path(context.training["folder"]) / "history.json").read_text(encoding="utf-8")
        )
        return {
            "seconds": history["seconds"],
            "precision": history["precision"],
            "trained_parameters": history["trained_parameters"],
            "loss": history["epochs"][-1].get("loss"),
            "n_texts": len(context.data.train),
        }


def main() -> None:
    given = options()
    require_compile_extra()
    train({**given, "train": given["warm_up"]})
    say(versions=versions("torch", "transformers", "peft"))
    for _ in sys.stdin:
        say(**train(given))


if __name__ == "__main__":
    main()
