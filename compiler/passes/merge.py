"""merge: fold the adapters into the weights, and prove that the answers stay.

Writes `model/`, a clean Hugging Face directory in float32, which every target lowers from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, eval_texts
from edgelm.compiler.hf import load_model, load_tokenizer, reference_outputs, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.finetune import method
from edgelm.compiler.passes.prepare import is_trained
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.schema import encode

PROBES = 32  # texts on which logits before and after are compared
# Folding W + BA rounds each weight once more in float32; logits of size 10 then move by about
# 1e-5. Ten times the largest seen is the limit.
MAX_RELATIVE_DIFF = 1e-3


class Merge(Pass):
    """Sets context.model_dir."""

    name = "merge"

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.source and context.task and context.text and context.data
        return {
            "model": context.source.digest,
            "finetune": context.digests.get("finetune"),
            "task": encode(context.task),
            "text": encode(context.text),
            "data": context.data.digest(),
            "versions": versions("torch", "transformers", "peft"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.source and context.task and context.text and context.data
        recipe, task = context.recipe, context.task
        tokenizer = load_tokenizer(context.source.folder)
        trained = Path(context.training["folder"]) if is_trained(recipe) else None
        start = context.source.folder
        if trained is not None and method(recipe) == "full":
            start = trained / "full"
        new_head = trained is not None and method(recipe) == "lora"
        model = load_model(start, task, new_head=new_head)
        probes = eval_texts(context)[:PROBES]

        def logits(of: Any) -> Any:
            return reference_outputs(of, tokenizer, task, probes, context.text.max_tokens)  # type: ignore[union-attr]

        if new_head:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(trained / "adapter")).eval()  # type: ignore[operator]
            before = logits(model)
            model = model.merge_and_unload().eval()
        else:
            before = logits(model)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        reloaded = load_model(folder / "model", task, new_head=False)
        after = logits(reloaded)
        result = {
            "max_abs_diff": float(np.abs(after - before).max()),
            "scale": float(np.abs(before).max()),
            "n": len(probes),
        }
        limit = MAX_RELATIVE_DIFF * max(1.0, result["scale"])
        if not result["max_abs_diff"] <= limit:
            raise VerificationError(
                f"merge: logits differ by {result['max_abs_diff']:.3g} between the model before "
                f"and after merging, over the limit {limit:.3g}"
            )
        (folder / "merge.json").write_text(json.dumps(result, indent=1), encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        context.model_dir = folder / "model"
        context.model_key = context.digests[self.name]
        merged = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
        context.training["merge"] = merged
        assert list(context.model_dir.glob("*.safetensors"))
