"""ModernBERT in llama.cpp's graph `modern-bert`.

The graph holds no biases, GeGLU or SwiGLU, rotary positions without scaling, and a head of
norm(gelu(dense x)). Its window is that of transformers: keys at most local_attention // 2 away.
"""

from __future__ import annotations

from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.targets.gguf.head import ACTIVATIONS, Head
from edgelm.targets.gguf.plan import POOLING_TYPES, Config, Move, Plan, PoolingMode
from edgelm.targets.gguf.weights import Weights

_WHY = "llama.cpp's graph for ModernBERT does not hold it"
_ROPE_THETA = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}


def plan_modernbert(config: Config, weights: Weights, task: Task) -> Plan:
    """The plan for ModernBERT. Raises ModelError."""
    for key in ("norm_bias", "attention_bias", "mlp_bias"):
        config.require(key, False, (False,), _WHY)
    activation = config.require(
        "hidden_activation", "gelu", ("gelu", "gelu_pytorch_tanh", "silu"), _WHY
    )
    prefix = "model." if "model.embeddings.tok_embeddings.weight" in weights else ""
    n_layers = config.count("num_hidden_layers")
    slides = _layer_pattern(config, n_layers)
    moves = [
        Move("token_embd.weight", f"{prefix}embeddings.tok_embeddings.weight", is_matrix=True),
        Move("token_embd_norm.weight", f"{prefix}embeddings.norm.weight"),
        Move("output_norm.weight", f"{prefix}final_norm.weight"),
    ]
    for i in range(n_layers):
        at = f"{prefix}layers.{i}."
        if i > 0:  # layer 0 has no norm before its attention
            moves.append(Move(f"blk.{i}.attn_norm.weight", f"{at}attn_norm.weight"))
        moves += [
            Move(f"blk.{i}.attn_qkv.weight", f"{at}attn.Wqkv.weight", is_matrix=True),
            Move(f"blk.{i}.attn_output.weight", f"{at}attn.Wo.weight", is_matrix=True),
            Move(f"blk.{i}.ffn_norm.weight", f"{at}mlp_norm.weight"),
            Move(f"blk.{i}.ffn_up.weight", f"{at}mlp.Wi.weight", is_matrix=True),
            Move(f"blk.{i}.ffn_down.weight", f"{at}mlp.Wo.weight", is_matrix=True),
        ]
    keys: dict[str, Any] = {
        "block_count": n_layers,
        "embedding_length": config.count("hidden_size"),
        "feed_forward_length": config.count("intermediate_size"),
        "attention.head_count": config.count("num_attention_heads"),
        "attention.layer_norm_epsilon": config.number("norm_eps", 1e-5),
        "hidden_activation": "silu" if activation == "silu" else "gelu",
        "rope.freq_base": _rope_theta(config, "full_attention"),
        "rope.freq_base_swa": _rope_theta(config, "sliding_attention"),
        "rope.scaling.type": "none",
    }
    if any(slides):
        keys["attention.sliding_window"] = config.count("local_attention")
        keys["attention.sliding_window_pattern"] = slides
    pooling, head_moves, head = _head(config, weights, task, keys)
    context = config.count("max_position_embeddings")
    return Plan("modern-bert", pooling, context, 1, keys, (*moves, *head_moves), head=head)


def _head(
    config: Config, weights: Weights, task: Task, keys: dict[str, Any]
) -> tuple[PoolingMode, list[Move], Head | None]:
    if task.kind == "feature-extraction":
        return task.pooling, [], None
    way: PoolingMode = config.require("classifier_pooling", "cls", ("cls", "mean"), _WHY)
    activation = config.get("classifier_activation", "gelu")
    if activation == "gelu" and "head.dense.bias" not in weights:
        keys["classifier.pooling_type"] = POOLING_TYPES[way]
        return (
            "rank",
            [
                Move("cls.weight", "head.dense.weight"),
                Move("cls.norm.weight", "head.norm.weight"),
                Move("cls.output.weight", "classifier.weight"),
                Move("cls.output.bias", "classifier.bias"),
            ],
            None,
        )
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"config.json: classifier_activation is {activation!r}; "
            f"known are {', '.join(sorted(ACTIVATIONS))}"
        )
    bias = "head.dense.bias"
    head = Head(
        dense_weight=weights.read("head.dense.weight"),
        dense_bias=weights.read(bias) if bias in weights else None,
        activation=activation,
        norm_weight=weights.read("head.norm.weight"),
        norm_eps=config.number("norm_eps", 1e-5),
        out_weight=weights.read("classifier.weight"),
        out_bias=weights.read("classifier.bias"),
    )
    return way, [], head


def _layer_pattern(config: Config, n_layers: int) -> list[bool]:
    """Which layers look through the window: new configs list it, older ones give a stride."""
    stated = config.values.get("layer_types")
    if stated is None:
        every = config.values.get("global_attn_every_n_layers", 3)
        if not isinstance(every, int) or every < 1:
            raise ModelError(f"config.json: global_attn_every_n_layers is {every!r}")
        return [i % every != 0 for i in range(n_layers)]
    if not isinstance(stated, list) or len(stated) != n_layers or set(stated) - set(_ROPE_THETA):
        raise ModelError(
            f"config.json: layer_types does not say one known type for {n_layers} layers"
        )
    return [kind == "sliding_attention" for kind in stated]


def _rope_theta(config: Config, kind: str) -> float:
    rope = config.get("rope_parameters", {})
    rope = rope.get(kind) if isinstance(rope, dict) else None
    if rope is None:  # configs from before transformers 5
        if config.get("rope_scaling", None) is not None:
            raise ModelError(f"config.json: rope_scaling is stated; {_WHY}")
        old = "global_rope_theta" if kind == "full_attention" else "local_rope_theta"
        return config.number(old, _ROPE_THETA[kind])
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ModelError(f"config.json: rope_parameters.{kind} is {rope!r}; {_WHY}")
    return Config(rope).number("rope_theta", _ROPE_THETA[kind])
