"""Structured pruning: whole layers, heads and feed-forward columns are left out. Of decoders a head
here is a group: a head of keys and values with the heads of queries that look through it.

What matters is measured on the user's texts. Layers are left out evenly, or where asked those that
change the hidden states least. Of the other parts, where there is a loss, by what it would change
to first order if the part were gone: |dL/dm| for a mask m of ones that the part is multiplied with,
summed over texts (Michel et al. 2019, arXiv:1905.10650; Molchanov et al. 2019, arXiv:1906.10771).
Where there is none, by the mean square of what the part adds to the layer's output.

Letters: L layers, N heads of D values, F feed-forward columns, B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import ModelError
from edgelm.targets import decoders, encoders
from edgelm.targets.encoders import HEADS, Names, resize
from edgelm.targets.gguf.decoders import DECODERS


@dataclass(frozen=True)
class Shape:
    """How large a model is."""

    layers: int
    heads: int
    ffn: int


@dataclass(frozen=True)
class Importance:
    """Of each part of each layer; larger is more."""

    heads: Tensor  # (L, N)
    ffn: Tensor  # (L, F)


def names_of(config: Any) -> Names:
    """Where the family has its parts. Raises ModelError for families that lose none."""
    if is_decoder(config):
        return decoders.NAMES[config.model_type]
    return encoders.names_of(config.model_type, also=decoders.NAMES)


def is_decoder(config: Any) -> bool:
    """Whether it is one of the decoders that lose parts."""
    return config.model_type in decoders.NAMES


def check(config: Any, recipe: Recipe) -> None:
    """Raise ModelError unless the model can lose what the recipe prunes, on its targets."""
    prune, family = recipe.prune, config.model_type
    whole = shape_of(config)
    goal = smaller(whole, prune)
    if is_decoder(config) != (recipe.task == "text-generation"):
        raise ModelError(
            f"config.json: model_type is {family!r}: decoders lose parts for text-generation, "
            "encoders for other tasks",
            hint="leave prune.layers, prune.ffn and prune.heads out",
        )
    if not is_decoder(config):
        return
    if goal.layers < whole.layers and family in decoders.FIXED_LAYERS:
        raise ModelError(
            f"prune.layers: of {family} all layers stay: which of them know positions is told by "
            "their numbers",
            hint="leave out columns or heads, with prune.ffn or prune.heads",
        )
    if goal.heads == whole.heads:
        return
    decoders.cut_config(config, n_groups=goal.heads)
    has_gguf = any(spec.startswith("gguf:") for spec in recipe.targets)
    if has_gguf and recipe.gguf.converter is None and not DECODERS[family].free_heads:
        raise ModelError(
            f"prune.heads: llama.cpp's graph of {family} has no fewer heads than make up the width",
            hint="leave prune.heads out, or the gguf targets",
        )


def shape_of(config: Any) -> Shape:
    """Raises ModelError for families that lose no parts."""
    names = names_of(config)
    heads = getattr(config, HEADS, None) or getattr(config, names.n_heads)
    return Shape(getattr(config, names.n_layers), heads, getattr(config, names.width))


def left(whole: int, out: float | None, multiple: int = 1) -> int:
    """How many of `whole` are left of which `out` are left out: a share under 1, else a count;
    at least one `multiple`, and whole multiples."""
    if not out:
        return whole
    rest = whole * (1 - out) if out < 1 else whole - out
    return min(whole, max(1, round(rest / multiple)) * multiple)


def smaller(shape: Shape, prune: Any) -> Shape:
    """What the recipe's `prune` leaves. Columns are left in blocks that engines like."""
    block = 256
    while block > 8 and (shape.ffn % block or shape.ffn < 8 * block):
        block //= 2
    if shape.ffn % block:
        block = 1
    return Shape(
        layers=left(shape.layers, prune.layers),
        heads=left(shape.heads, prune.heads),
        ffn=left(shape.ffn, prune.ffn, block),
    )


def evenly(n_layers: int, n_kept: int) -> list[int]:
    """Numbers of the layers kept, evenly apart; the last is always one of them."""
    return [(i + 1) * n_layers // n_kept - 1 for i in range(n_kept)]


def most_changing(changes: Sequence[float], n_kept: int) -> list[int]:
    """Numbers of the layers kept: those of the largest changes, of equal ones the later."""
    order = sorted(range(len(changes)), key=lambda i: (changes[i], i))
    return sorted(order[len(changes) - n_kept :])


def layer_changes(model: Any, batches: Iterable[dict[str, Any]]) -> list[float]:
    """Of each layer 1 - the mean cosine of its input and its output (B, T, H) over all tokens of
    the batches (Men et al. 2024, arXiv:2403.03853: block influence)."""
    layers = _layers(model)
    sums, n_tokens = [0.0] * len(layers), 0
    mask = torch.ones(0)

    def watch(i: int, inputs: tuple[Any, ...], given: dict[str, Any], outputs: Any) -> None:
        before = inputs[0] if inputs else given["hidden_states"]
        after = outputs[0] if isinstance(outputs, tuple) else outputs
        cosines = torch.cosine_similarity(before.float(), after.float(), dim=-1)
        sums[i] += float((1 - cosines)[mask].sum(dtype=torch.float64))

    was_training = model.training
    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for i, layer in enumerate(layers):
            handle = layer.register_forward_hook(
                lambda m, x, given, out, i=i: watch(i, x, given, out), with_kwargs=True
            )
            hooks.callback(handle.remove)
        for batch in batches:
            mask = batch["attention_mask"].bool()
            n_tokens += int(mask.sum())
            model(**{k: v for k, v in batch.items() if k != "labels"})
    model.train(was_training)
    return [total / n_tokens for total in sums]


def _layers(model: Any) -> Any:
    """The list of a model's layers."""
    body = getattr(model, model.base_model_prefix, model)
    return body.get_submodule(names_of(model.config).layer.removesuffix(".{i}."))


def measure(
    model: Any,
    batches: Iterable[dict[str, Any]],
    loss: Callable[[Any, dict[str, Any]], Tensor] | None,
) -> Importance:
    """Run the model over batches of inputs (and `labels`, where `loss` takes them from there).

    `loss(outputs, batch)` is summed over the texts of a batch; None where there is none."""
    body = getattr(model, model.base_model_prefix, model)
    names, shape = names_of(model.config), shape_of(model.config)
    masks: dict[tuple[int, str], Tensor] = {}
    seen: dict[tuple[int, str], Tensor] = {}
    sums = {
        "attn_output": torch.zeros(shape.layers, shape.heads),
        "ffn_down": torch.zeros(shape.layers, shape.ffn),
    }

    def watch(module: Any, inputs: tuple[Any, ...], place: tuple[int, str]) -> tuple[Any, ...]:
        (x,) = inputs  # (B, T, K)
        if loss is None:
            seen[place] = x.detach()
            return inputs
        n_parts = sums[place[1]].shape[1]
        masks[place] = torch.ones(len(x), 1, n_parts, 1, requires_grad=True)
        return ((x.unflatten(-1, (n_parts, -1)) * masks[place]).flatten(-2),)

    was_training = model.training
    model.eval()
    with ExitStack() as hooks:
        for i in range(shape.layers):
            for name in sums:
                module = body.get_submodule(names.part(i, name))
                handle = module.register_forward_pre_hook(
                    lambda m, x, place=(i, name): watch(m, x, place)
                )
                hooks.callback(handle.remove)
        for batch in batches:
            given = {k: v for k, v in batch.items() if k != "labels"}
            with torch.set_grad_enabled(loss is not None):
                outputs = model(**given)
                if loss is not None:
                    places = list(masks)
                    found = torch.autograd.grad(loss(outputs, batch), [masks[p] for p in places])
                    for (i, name), gradient in zip(places, found, strict=True):
                        sums[name][i] += gradient.abs().sum(0).flatten()
                else:
                    mask = batch["attention_mask"].bool()
                    for (i, name), x in seen.items():
                        weight = body.get_submodule(names.part(i, name)).weight
                        sums[name][i] += _added(x[mask], weight, sums[name].shape[1])
    model.train(was_training)
    return Importance(sums["attn_output"], sums["ffn_down"])


def _added(x: Tensor, weight: Tensor, n_parts: int) -> Tensor:
    """Inputs (N, K) of a linear layer with the weight (H, K) -> the squared length of what each of
    the `n_parts` of K adds to the output, summed over N."""
    if n_parts == x.shape[1]:
        return x.square().sum(0) * weight.square().sum(0)
    size = x.shape[1] // n_parts
    parts = [slice(p * size, (p + 1) * size) for p in range(n_parts)]
    return torch.stack([(x[:, at] @ weight[:, at].T).square().sum() for at in parts])


def keep_layers(model: Any, kept: Sequence[int]) -> Any:
    """The model with these of its layers; of an encoder the same, changed, of a decoder a new one.
    Raises ModelError."""
    names = names_of(model.config)
    if is_decoder(model.config):
        return decoders.cut(model, decoders.Kept(layers=kept))
    layers = _layers(model)
    for i in sorted(set(range(len(layers))) - set(kept), reverse=True):
        del layers[i]
    setattr(model.config, names.n_layers, len(kept))
    return model


def keep_best(model: Any, importance: Importance, shape: Shape) -> Any:
    """Leave each layer with its most important heads and columns, as many as `shape` has; answers
    as `keep_layers` does."""
    config, names = model.config, names_of(model.config)
    now = shape_of(config)
    heads = [_largest(row, shape.heads) for row in importance.heads]
    columns = [_largest(row, shape.ffn) for row in importance.ffn]
    if is_decoder(config):
        kept = decoders.Kept(
            groups=heads if shape.heads < now.heads else None,
            columns=columns if shape.ffn < now.ffn else None,
        )
        return decoders.cut(model, kept)
    body = getattr(model, model.base_model_prefix, model)
    size = getattr(config, names.hidden) // getattr(config, names.n_heads)
    for i in range(now.layers):
        if shape.heads < now.heads:
            places = [h * size + d for h in heads[i] for d in range(size)]
            for name in ("attn_q", "attn_k", "attn_v"):
                resize(body, names.part(i, name), rows=places)
            resize(body, names.part(i, "attn_output"), columns=places)
        if shape.ffn < now.ffn:
            resize(body, names.part(i, "ffn_up"), rows=columns[i])
            resize(body, names.part(i, "ffn_down"), columns=columns[i])
    if shape.heads < now.heads:
        setattr(config, HEADS, shape.heads)
    setattr(config, names.width, shape.ffn)
    return model


def _largest(values: Tensor, n: int) -> list[int]:
    return sorted(values.argsort(descending=True, stable=True)[:n].tolist())
