"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT in llama.cpp's graph `bert`.

That graph hardcodes GELU (the tanh form, from a table of float16 values), token type 0 and, for
classification, cls.output(tanh(cls x)): checkpoints that differ are refused or keep their head in
a file of their own.
"""

from __future__ import annotations

from dataclasses import replace

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.targets.encoders import HEADS, NAMES
from edgelm.targets.gguf.head import Head
from edgelm.targets.gguf.plan import Config, Move, Plan, PoolingMode
from edgelm.targets.gguf.weights import Weights

GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python")
_WHY = "llama.cpp's graph for BERT does not look at it"


def plan_bert(config: Config, weights: Weights, task: Task) -> Plan:
    """The plan for one of the four families. Raises ModelError."""
    family = str(config.values.get("model_type"))
    names = NAMES[family]
    distil = family == "distilbert"
    config.require("activation" if distil else "hidden_act", "gelu", GELUS, _WHY)
    config.require("position_embedding_type", "absolute", ("absolute",), _WHY)
    config.require("is_decoder", False, (False,), _WHY)
    config.require("add_cross_attention", False, (False,), _WHY)
    embeddings = "embeddings."
    prefix = names.prefix if f"{names.prefix}{embeddings}word_embeddings.weight" in weights else ""
    at = prefix + embeddings
    skip = _first_position(config) if family in ("roberta", "xlm-roberta") else 0
    n_positions = weights.shape(f"{at}position_embeddings.weight")[0]
    if n_positions <= skip:
        raise ModelError(f"its {n_positions} positions begin at {skip}: none is left")
    moves = [
        Move("token_embd.weight", f"{at}word_embeddings.weight", is_matrix=True),
        Move("position_embd.weight", f"{at}position_embeddings.weight", skip_rows=skip),
        *_pair("token_embd_norm", f"{at}LayerNorm"),
    ]
    n_types = 1
    if not distil:
        moves.append(Move("token_types.weight", f"{at}token_type_embeddings.weight"))
        n_types = weights.shape(f"{at}token_type_embeddings.weight")[0]
    n_layers, n_hidden = config.count(names.n_layers), config.count(names.hidden)
    # the graph has no fewer heads: those left out come back as zeros, which answer nothing
    pad = n_hidden if config.get(HEADS, None) is not None else 0
    for i in range(n_layers):
        for part in names.parts:
            is_padded = pad if part in ("attn_q", "attn_k", "attn_v") else 0
            weight, bias = _pair(
                f"blk.{i}.{part}", prefix + names.part(i, part), is_matrix="norm" not in part
            )
            moves.append(replace(weight, rows=is_padded, columns=pad * (part == "attn_output")))
            moves.append(replace(bias, rows=is_padded))
    pooling, head_moves, head = _head(family, prefix, weights, task)
    keys = {
        "block_count": n_layers,
        "embedding_length": n_hidden,
        "feed_forward_length": config.count(names.width),
        "attention.head_count": config.count(names.n_heads),
        "attention.layer_norm_epsilon": 1e-12 if distil else config.number("layer_norm_eps", 1e-12),
    }
    return Plan(
        "bert", pooling, n_positions - skip, n_types, keys, (*moves, *head_moves), head=head
    )


def _head(
    family: str, prefix: str, weights: Weights, task: Task
) -> tuple[PoolingMode, list[Move], Head | None]:
    if task.kind == "feature-extraction":
        return task.pooling, [], None
    if family == "distilbert":
        head = Head(
            dense_weight=weights.read("pre_classifier.weight"),
            dense_bias=weights.read("pre_classifier.bias"),
            activation="relu",
            norm_weight=None,
            norm_eps=0.0,
            out_weight=weights.read("classifier.weight"),
            out_bias=weights.read("classifier.bias"),
        )
        return "cls", [], head
    if family == "bert":
        dense, out = f"{prefix}pooler.dense", "classifier"
    else:
        dense, out = "classifier.dense", "classifier.out_proj"
    return "rank", [*_pair("cls", dense), *_pair("cls.output", out)], None


def _pair(name: str, source: str, *, is_matrix: bool = False) -> list[Move]:
    return [
        Move(f"{name}.weight", f"{source}.weight", is_matrix=is_matrix),
        Move(f"{name}.bias", f"{source}.bias"),
    ]


def _first_position(config: Config) -> int:
    """RoBERTa counts positions from the padding id + 1."""
    pad = config.values.get("pad_token_id", 1)
    if not isinstance(pad, int) or pad < 0:
        raise ModelError(
            f"config.json: pad_token_id is {pad!r}; RoBERTa's positions begin after it"
        )
    return pad + 1
