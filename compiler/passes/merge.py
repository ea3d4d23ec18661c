"""merge: fold the adapters into the weights, and prove that the answers stay.

Writes `model/`, a clean Hugging Face directory, which every target lowers from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.context import Context, eval_texts
from edgelm.compiler.hf import load_model, load_tokenizer, reference_outputs, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.training import is_trained, method
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.schema import encode

PROBES = 32  # texts on which logits before and after are compared
# Folding W + BA rounds each weight once more in float32; logits of size 10 then move by about
# 1e-5. Ten times the largest seen is the limit.
MAX_RELATIVE_DIFF = 1e-3

Answers = Callable[[Any], NDArray[np.float32]]  # a model's logits on the probes, (n, C)


class Merge(Pass):
    """Sets context.model_dir."""

    name = "merge"

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.source and context.task and context.text
        return {
            "model": context.source.digest,
            "finetune": context.digests.get("finetune"),
            "task": encode(context.task),
            "text": encode(context.text),
            "data": context.data_digest,
            "versions": versions("torch", "transformers", "peft"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.source and context.task
        tokenizer = self.tokenizer(context)
        start, adapter = self.weights(context)
        model = load_model(start, context.task, new_head=adapter is not None)
        answers, n = self.probes(context, tokenizer)
        if adapter is not None:
            model = self.attach(context, model, adapter)
            before = answers(model)
            model = model.merge_and_unload().eval()
        else:
            before = answers(model)
        self.finish(context, model)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        del model
        after = answers(load_model(folder / "model", context.task, new_head=False))
        result = {
            "max_abs_diff": float(np.abs(after - before).max()),
            "scale": float(np.abs(before).max()),
            "n": n,
        }
        limit = MAX_RELATIVE_DIFF * max(1.0, result["scale"])
        if not result["max_abs_diff"] <= limit:
            raise VerificationError(
                f"merge: logits differ by {result['max_abs_diff']:.3g} between the model before "
                f"and after merging, over the limit {limit:.3g}",
                hint="train with a lower --learning-rate, or in full, where nothing is folded in"
                if adapter is not None
                else "save the model anew with save_pretrained of transformers, and compile that",
            )
        (folder / "merge.json").write_text(json.dumps(result, indent=1), encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        context.model_dir = folder / "model"
        context.model_key = context.digests[self.name]
        merged = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
        context.training["merge"] = merged
        assert list(context.model_dir.glob("*.safetensors"))

    def weights(self, context: Context) -> tuple[Path, Path | None]:
        """(the model to begin with, the adapter to fold into it)."""
        assert context.source is not None
        if not is_trained(context.recipe):
            return context.source.folder, None
        trained = Path(context.training["folder"])
        if method(context.recipe) == "full":
            return trained / "full", None
        return context.source.folder, trained / "adapter"

    def tokenizer(self, context: Context) -> Any:
        """The tokenizer that goes with the model."""
        assert context.source is not None
        return load_tokenizer(context.source.folder)

    def attach(self, context: Context, model: Any, adapter: Path) -> Any:
        """The model with its adapter beside the weights."""
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(adapter)).eval()

    def finish(self, context: Context, model: Any) -> None:
        """A model that goes through untouched keeps the precision it came in, which is exact."""
        assert context.source is not None
        if is_trained(context.recipe) or context.recipe.adapter is not None:
            return
        config = context.source.config
        narrow(model, str(config.get("dtype") or config.get("torch_dtype")))

    def probes(self, context: Context, tokenizer: Any) -> tuple[Answers, int]:
        """(what to ask a model before and after, of how many texts)."""
        assert context.task and context.text
        task, limit, texts = context.task, context.text.max_tokens, eval_texts(context)[:PROBES]
        return lambda model: reference_outputs(model, tokenizer, task, texts, limit), len(texts)


def narrow(model: Any, dtype: str) -> None:
    """Turn the weights that are the same in `dtype` into it."""
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        return
    for parameter in model.parameters():
        turned = parameter.data.to(kinds[dtype])
        if torch.equal(turned.float(), parameter.data):
            parameter.data = turned
