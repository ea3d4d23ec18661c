"""What the matrices of a Hugging Face model are multiplied with, summed up into an Imatrix.

Letters: B sequences in a batch, T tokens of the longest, C columns of a matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.runtime.engine import TokenBatch
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.encoders import HEADS
from edgelm.targets.gguf.families import make_plan
from edgelm.targets.gguf.imatrix import CHUNK_TOKENS, Imatrix, wanted
from edgelm.targets.gguf.plan import Config
from edgelm.targets.gguf.weights import Weights

if TYPE_CHECKING:
    import torch

MIN_TOKENS = 16  # of a rest that is looked at; a beginning's values are far from the usual ones


def collect(
    model: Any,
    model_dir: Path,
    task: Task,
    text: TextLimits,
    batches: Iterable[TokenBatch],
    advance: Callable[[int], None] = lambda n_tokens: None,
) -> Imatrix:
    """Run `model`, which was loaded from `model_dir`, over the batches; one batch in memory at a
    time. `advance` is told the tokens of each.

    Raises ModelError for a model that the gguf target does not know, for one with fewer heads or
    whose layers are not found, for activations that are not finite, and when there are no
    batches."""
    import torch

    layers = linear_layers(model, model_dir, task, text)
    sums = {name: torch.zeros(module.in_features, dtype=torch.float64) for name, module in layers}
    body = model.base_model  # a decoder's logits take more memory than all else
    mask = torch.empty(0, dtype=torch.bool)
    latest: tuple[Any, Any] = (None, None)  # q, k and v meet the same values

    def look(module: Any, inputs: tuple[Any, ...], name: str) -> None:
        nonlocal latest
        x = inputs[0]
        if x is not latest[0]:
            assert x.shape[:-1] == mask.shape, (name, x.shape, mask.shape)
            latest = (x, x[mask].float().square().sum(dim=0).double())
        sums[name] += latest[1]

    n_tokens = n_chunks = 0
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in layers:
            handle = module.register_forward_pre_hook(_named(look, name))
            hooks.callback(handle.remove)
        for batch in batches:
            mask = _mask(batch)
            inputs: dict[str, Any] = {
                "input_ids": torch.from_numpy(batch.input_ids).long(),
                "attention_mask": mask.long(),
            }
            if text.type_ids:
                inputs["token_type_ids"] = torch.from_numpy(batch.type_ids).long()
            if task.kind == "text-generation":
                inputs["use_cache"] = False
            body(**inputs)
            latest = (None, None)
            n_tokens += batch.n_tokens
            n_chunks += len(batch.lengths)
            advance(batch.n_tokens)
    if n_tokens == 0:
        raise ModelError("an importance matrix needs at least one text")
    found = {name: values.float().numpy() for name, values in sums.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ModelError(f"the values that {name} is multiplied with are not finite")
    return Imatrix(found, dict.fromkeys(found, n_tokens), n_chunks)


def pieces(
    ids: list[int], begin_id: int | None, max_tokens: int = CHUNK_TOKENS
) -> Iterable[list[int]]:
    """The tokens of a text in pieces of CHUNK_TOKENS, or `max_tokens` where that is less. Those
    after the first begin with `begin_id`, the token that begins a text, in place of their own
    first: so does llama-imatrix."""
    size = min(CHUNK_TOKENS, max_tokens)
    yield ids[:size]
    for start in range(size, len(ids) - MIN_TOKENS + 1, size):
        piece = ids[start : start + size]
        yield piece if begin_id is None else [begin_id, *piece[1:]]


def _named(look: Callable[[Any, tuple[Any, ...], str], None], name: str) -> Any:
    return lambda module, inputs: look(module, inputs, name)


def _mask(batch: TokenBatch) -> torch.Tensor:
    """(B, T), True for real tokens."""
    import torch

    _, T = batch.input_ids.shape
    return torch.arange(T) < torch.from_numpy(batch.lengths)[:, None]


def linear_layers(
    model: Any, model_dir: Path, task: Task, text: TextLimits
) -> list[tuple[str, Any]]:
    """(name in the file, the linear layer) of every matrix that is looked at."""
    values = json.loads((model_dir / "config.json").read_text("utf-8"))
    if values.get(HEADS) is not None:
        raise ModelError(
            "an importance matrix has no values for heads that were left out",
            hint="state --imatrix none, a type of 6 bits or more, or no --prune-heads",
        )
    with Weights(model_dir) as weights:
        plan = make_plan(Config(values), weights, task, text)
        sources = {move.name: move.source for move in plan.moves if move.is_matrix}
        shapes = {name: weights.shape(source) for name, source in sources.items()}
    modules = dict(model.named_modules())
    found: list[tuple[str, Any]] = []
    for name in wanted(shapes):
        source = sources[name].removesuffix(".weight")
        # a checkpoint of the bare model lacks the prefix that a model with a head gives it
        names = (source, f"{model.base_model_prefix}.{source}", source.partition(".")[2])
        module = next((modules[n] for n in names if n in modules), None)
        if module is None or not hasattr(module, "in_features"):
            raise ModelError(f"the model has no linear layer {source}, the checkpoint has")
        found.append((name, module))
    return found
