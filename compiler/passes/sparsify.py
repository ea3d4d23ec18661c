"""sparsify: single weights of the merged model become zero, those that matter least.

Writes `model/`, the Hugging Face directory with the zeros. Of each linear layer of the body a share
goes; embeddings, poolers and heads stay whole. How much a weight W[n, k] matters:

    magnitude   |W[n, k]|, compared in the whole layer
    wanda       |W[n, k]| * |x[k]|, compared in its row (Sun et al. 2023, arXiv:2306.11695); |x[k]|
                is the norm of what column k meets on training texts, in the model with all weights

With the pattern 2:4 the comparison is among four neighbours in a row, of which two go.

Letters: N outputs and K inputs of a layer, B texts in a batch, T tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.compiler.context import Context, Sparsified
from edgelm.compiler.hf import (
    REFERENCE_BATCH,
    encode,
    linear_layers,
    load_model,
    load_tokenizer,
    torch_threads,
    uses_type_ids,
    versions,
)
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.intake import read_json
from edgelm.compiler.passes.lower import calibration_texts
from edgelm.compiler.passes.merge import narrow
from edgelm.compiler.shrinking import SparsityPattern
from edgelm.runtime.errors import ModelError
from edgelm.runtime.tokenizer import Text

if TYPE_CHECKING:
    import torch

ROUND = 4  # neighbours that are compared with the pattern 2:4
NO_GAIN = (
    "the engines here store and multiply zeros like any weight, so no file is smaller and no "
    "answer faster by it"
)
FOR_LATER = "; the pattern 2:4 is what TensorRT can use on NVIDIA GPUs"


class Sparsify(Pass):
    """Replaces context.model_dir; sets context.sparsified."""

    name = "sparsify"

    def inputs(self, context: Context) -> dict[str, Any]:
        prune = context.recipe.prune
        uses_texts = prune.method == "wanda"
        return {
            "model": context.model_key,
            "sparsity": prune.sparsity,
            "pattern": prune.pattern,
            "method": prune.method,
            "texts": context.data_digest if uses_texts else None,
            "n_texts": context.recipe.quantize.calibration_texts if uses_texts else None,
            "seed": context.recipe.seed if uses_texts else None,
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.task and context.text
        recipe, prune = context.recipe, context.recipe.prune
        assert prune.sparsity is not None
        tokenizer = load_tokenizer(context.model_dir)
        model = load_model(context.model_dir, context.task, new_head=False)
        layers = linear_layers(model.base_model)
        norms: dict[str, torch.Tensor] = {}
        if prune.method == "wanda":
            texts = calibration_texts(context)
            with torch_threads(recipe.threads):
                norms = input_norms(model, tokenizer, layers, texts, context.text.max_tokens)
        n_weights = n_zeros = 0
        for name, layer in layers.items():
            weight = layer.weight.data
            score = weight.abs() * norms[name] if norms else weight.abs()
            if prune.pattern == "2:4" and weight.shape[1] % ROUND:
                raise ModelError(
                    f"prune.pattern: 2:4: the {weight.shape[1]} inputs of {name} are no multiple "
                    f"of {ROUND}",
                    hint="take prune.pattern: unstructured",
                )
            weight[~kept(score, prune.sparsity, prune.pattern, by_row=bool(norms))] = 0
            n_weights += weight.numel()
            n_zeros += int((weight == 0).sum())
        narrow(model, str(read_json(context.model_dir / "config.json").get("dtype")))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        report = {
            "method": prune.method,
            "pattern": prune.pattern,
            "layers": len(layers),
            "weights": n_weights,
            "zeros": n_zeros,
        }
        (folder / "sparsify.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        assert context.model_dir is not None
        report = json.loads((folder / "sparsify.json").read_text(encoding="utf-8"))
        context.sparsified = Sparsified(context.model_dir, report)
        context.model_dir = folder / "model"
        context.model_key = context.digests[self.name]
        share = report["zeros"] / report["weights"]
        context.note(
            f"{share:.1%} of the weights of {report['layers']} linear layers are zero "
            f"({report['pattern']}, {report['method']}); {NO_GAIN}"
            + (FOR_LATER if report["pattern"] == "2:4" else "")
        )


def kept(
    score: torch.Tensor, sparsity: float, pattern: SparsityPattern, *, by_row: bool
) -> torch.Tensor:
    """Which weights stay, bool (N, K), by their score (N, K): all but the share `sparsity` of
    lowest score in each group. A group is four neighbours with 2:4, else a row, else all."""
    import torch

    width = ROUND if pattern == "2:4" else score.shape[1] if by_row else score.numel()
    groups = score.reshape(-1, width)
    order = groups.argsort(dim=1, stable=True)
    stays = torch.ones_like(groups, dtype=torch.bool)
    stays.scatter_(1, order[:, : int(sparsity * width)], value=False)
    return stays.reshape(score.shape)


def input_norms(
    model: Any, tokenizer: Any, layers: dict[str, Any], texts: Sequence[Text], max_tokens: int
) -> dict[str, torch.Tensor]:
    """The norm (K,) of what each column of each layer is multiplied with, over all real tokens."""
    import torch

    squares = {name: torch.zeros(layer.in_features).double() for name, layer in layers.items()}
    mask = torch.empty(0, dtype=torch.bool)  # (B, T)

    def look(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            assert x.shape[:-1] == mask.shape, (name, x.shape, mask.shape)
            squares[name] += x[mask].double().square().sum(dim=0)

        return hook

    type_ids = uses_type_ids(tokenizer, model.config)
    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(look(name)).remove)
        for start in range(0, len(texts), REFERENCE_BATCH):
            part = texts[start : start + REFERENCE_BATCH]
            batch = encode(tokenizer, part, max_tokens, type_ids)
            mask = batch["attention_mask"].bool()
            model.base_model(**batch)
    return {name: values.sqrt().float() for name, values in squares.items()}
