"""Encoders that can lose parts: where each family keeps the parts of a layer, and heads left out.

A model with fewer heads of the same size does not fit its family's config, in which the size of a
head is hidden size / heads. Its config.json keeps the heads it came with, and says under HEADS how
many are left; `load_narrow` makes the model so. Everything else of it is plain Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import ModelError

HEADS = "edgelm_heads"  # key of config.json: heads that each layer is left with


@dataclass(frozen=True)
class Names:
    """Where one family keeps the parts of a layer; `{i}` is the layer's number."""

    prefix: str
    layer: str
    parts: dict[str, str]  # as they are called in a GGUF file -> as in the model
    n_layers: str  # keys of config.json
    n_heads: str
    hidden: str
    width: str  # of the feed-forward

    def part(self, i: int, name: str) -> str:
        """Where the base model has a part of layer i."""
        return self.layer.format(i=i) + self.parts[name]


_BERT_PARTS = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_DISTIL_PARTS = {
    "attn_q": "attention.q_lin",
    "attn_k": "attention.k_lin",
    "attn_v": "attention.v_lin",
    "attn_output": "attention.out_lin",
    "attn_output_norm": "sa_layer_norm",
    "ffn_up": "ffn.lin1",
    "ffn_down": "ffn.lin2",
    "layer_output_norm": "output_layer_norm",
}
_BERT_KEYS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
_DISTIL_KEYS = ("n_layers", "n_heads", "dim", "hidden_dim")
NAMES = {
    "bert": Names("bert.", "encoder.layer.{i}.", _BERT_PARTS, *_BERT_KEYS),
    "roberta": Names("roberta.", "encoder.layer.{i}.", _BERT_PARTS, *_BERT_KEYS),
    "xlm-roberta": Names("roberta.", "encoder.layer.{i}.", _BERT_PARTS, *_BERT_KEYS),
    "distilbert": Names("distilbert.", "transformer.layer.{i}.", _DISTIL_PARTS, *_DISTIL_KEYS),
}


def names_of(model_type: str, also: Iterable[str] = ()) -> Names:
    """The family's names. Raises ModelError for families that lose no parts; `also` are others that
    do."""
    if model_type not in NAMES:
        known = ", ".join([*NAMES, *also])
        raise ModelError(
            f"config.json: model_type is {model_type!r}; parts are left out of {known}",
            hint="leave prune.layers, prune.ffn and prune.heads out, or take another model",
        )
    return NAMES[model_type]


def load_narrow(auto: Any, folder: Path, config: Any, attention: str | None = None) -> Any | None:
    """The model of class `auto` in float32, where its config states HEADS; else None, and
    transformers loads it. `attention` is transformers' `attn_implementation`.

    Raises ModelError for weights that are not those of the config, RuntimeError from torch."""
    n_heads = getattr(config, HEADS, None)
    if n_heads is None:
        return None
    from safetensors.torch import load_file

    names = names_of(config.model_type)
    most = int(getattr(config, names.n_heads))
    if not isinstance(n_heads, int) or isinstance(n_heads, bool) or not 1 <= n_heads <= most:
        raise ModelError(f"{folder}/config.json: {HEADS} is {n_heads!r}, not 1 to {most}")
    options = {} if attention is None else {"attn_implementation": attention}
    model = auto.from_config(config, **options).float()
    body = getattr(model, model.base_model_prefix, model)
    size = int(getattr(config, names.hidden)) // most * n_heads
    for i in range(int(getattr(config, names.n_layers))):
        for name in ("attn_q", "attn_k", "attn_v"):
            resize(body, names.part(i, name), rows=range(size))
        resize(body, names.part(i, "attn_output"), columns=range(size))
    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of the model's weights are not in its files, "
            f"{missing[0]} is the first"
        )
    model.load_state_dict({name: weights[name] for name in own})
    return model.eval()


def resize(body: Any, path: str, *, rows: Any = None, columns: Any = None) -> None:
    """Leave a linear layer of `body` with these outputs (rows of its weight) or inputs."""
    import torch

    old = body.get_submodule(path)
    weight, bias = old.weight.detach(), old.bias.detach()
    if rows is not None:
        kept = torch.as_tensor(list(rows))
        weight, bias = weight[kept], bias[kept]
    if columns is not None:
        weight = weight[:, torch.as_tensor(list(columns))]
    new = torch.nn.Linear(weight.shape[1], weight.shape[0])
    new.weight.data, new.bias.data = weight.clone(), bias.clone()
    parent, _, name = path.rpartition(".")
    setattr(body.get_submodule(parent), name, new.train(old.training))
