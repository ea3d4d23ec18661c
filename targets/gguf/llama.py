"""Llama and the decoders built like it: RMS norms, rotary positions, gated feed-forward.

A family is a `Graph`: which of llama.cpp's graphs computes it, and what that graph knows. What
the checkpoint holds beyond that is refused, never left out.

Letters: V vocabulary, H width, D size of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.causal import check_pooling
from edgelm.targets.gguf.plan import Config, Move, Plan
from edgelm.targets.gguf.rope import plan_rope, rope_settings, rotated
from edgelm.targets.gguf.weights import Weights

# part of a layer in the file -> in the checkpoint
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_QKV = ("attn_q", "attn_k", "attn_v")
_INERT = ("rotary_emb.inv_freq",)  # that older checkpoints carry along, computed anew on loading


@dataclass(frozen=True)
class Heads:
    """The shapes of attention: n of queries, n_kv of keys and values, D values each."""

    n: int
    n_kv: int
    size: int


def _unbounded(config: Config) -> int | None:
    return None


def _nothing(config: Config, heads: Heads) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Graph:
    """One of llama.cpp's graphs, and the defaults of the family's config in transformers."""

    arch: str
    norms: dict[str, str] = field(default_factory=lambda: dict(NORMS))
    matrices: dict[str, str] = field(default_factory=lambda: ATTENTION | FEED_FORWARD)
    biases: tuple[str, ...] = ()  # of the matrices that may have one
    activation: tuple[str, str] = ("hidden_act", "silu")  # key of the config, value
    neighbours: bool = False  # rope turns neighbouring values, so rows of q and k change places
    turns_part: bool = False  # rope may leave the end of a head as it is
    free_heads: bool = True  # heads need not make up the width
    rope_kinds: tuple[str, ...] = ("linear", "yarn")
    norm_shift: float = 0.0  # the checkpoint's norm weights are that much smaller
    must_tie: bool = False
    theta: float = 10_000.0
    epsilon: float = 1e-6
    tied: bool = False
    window: Callable[[Config], int | None] = _unbounded  # how far back a layer looks
    more: Callable[[Config, Heads], dict[str, Any]] = _nothing  # the graph's own keys


def plan_llama(
    graph: Graph, config: Config, weights: Weights, task: Task, text: TextLimits
) -> Plan:
    """The plan of one model. For embeddings the product with the vocabulary stays behind, as if it
    were the token table's: llama.cpp then takes that. Raises ModelError."""
    key, value = graph.activation
    known = ("gelu_pytorch_tanh", "gelu_new") if "gelu" in value else (value,)
    config.require(key, value, known, f"llama.cpp's graph {graph.arch!r} lacks it")
    prefix = "model." if "model.embed_tokens.weight" in weights else ""
    n_layers = config.count("num_hidden_layers")
    heads = _heads(graph, config, weights, f"{prefix}layers.0.")
    settings = rope_settings(config, graph.theta, "full_attention")
    n_rot = rotated(settings, heads.size)
    if n_rot != heads.size and not graph.turns_part:
        raise config.refusal("partial_rotary_factor", n_rot / heads.size, _lacks(graph))
    rope = plan_rope(config, settings, n_rot, graph.rope_kinds, text.max_tokens)
    moves = [Move("token_embd.weight", f"{prefix}embed_tokens.weight", is_matrix=True)]
    for i in range(n_layers):
        layer = layer_moves(graph, heads.n, heads.n_kv, f"{prefix}layers.{i}.", f"blk.{i}.")
        moves += [m for m in layer if m.source in weights or not m.source.endswith(".bias")]
    moves.append(Move("output_norm.weight", f"{prefix}norm.weight", shift=graph.norm_shift))
    embeds = task.kind == "feature-extraction"
    if embeds:
        check_pooling(task.pooling)
    tied = embeds or bool(config.get("tie_word_embeddings", graph.tied))
    if not tied and graph.must_tie:
        raise config.refusal("tie_word_embeddings", False, _lacks(graph))
    if not tied:
        moves.append(Move("output.weight", "lm_head.weight", is_matrix=True))
    _check_all_planned(graph, weights, moves, tied)
    keys = {
        "block_count": n_layers,
        "embedding_length": config.count("hidden_size"),
        "feed_forward_length": config.count("intermediate_size"),
        "attention.head_count": heads.n,
        "attention.head_count_kv": heads.n_kv,
        "attention.key_length": heads.size,
        "attention.value_length": heads.size,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", graph.epsilon),
        "rope.dimension_count": n_rot,
        **rope.keys,
        **graph.more(config, heads),
    }
    positions = config.count("max_position_embeddings")
    window = graph.window(config)
    ends = {}
    if window is not None and window < positions:
        positions = window
        ends["context_ends"] = (
            "llama.cpp's graph has no sliding window, and the model's begins to matter after"
        )
    return Plan(
        graph.arch,
        task.pooling if embeds else None,
        positions,
        1,
        keys,
        tuple(moves),
        tables=rope.tables,
        causal=True,
        **ends,
    )


def _heads(graph: Graph, config: Config, weights: Weights, layer: str) -> Heads:
    """Counted from the weights, as configs leave out what is their family's default."""
    n, width = config.count("num_attention_heads"), config.count("hidden_size")
    if "attn_qkv" in graph.matrices:
        rows = weights.shape(f"{layer}{graph.matrices['attn_qkv']}.weight")[0]
        size = config.get("head_dim", None) or width // n
        n_kv, rest = divmod(rows - n * size, 2 * size)
    else:
        q, k = (weights.shape(f"{layer}{graph.matrices[p]}.weight")[0] for p in _QKV[:2])
        size, rest = divmod(q, n)
        n_kv, rest = divmod(k, size) if not rest and size else (0, 1)
    stated = config.get("head_dim", size), config.get("num_key_value_heads", n_kv)
    if rest or stated != (size, n_kv) or n_kv < 1 or n % n_kv:
        raise ModelError(
            f"config.json: {n} heads, head_dim {stated[0]} and num_key_value_heads {stated[1]} "
            "do not fit the weights of the first layer"
        )
    if not graph.free_heads and n * size != width:
        raise config.refusal("head_dim", size, f"{_lacks(graph)} ({width} / {n} is what it takes)")
    return Heads(n, n_kv, size)


def layer_moves(graph: Graph, n: int, n_kv: int, source: str, target: str) -> list[Move]:
    """What a layer may hold, biases too; n and n_kv are the counts of heads."""
    moves = [
        Move(f"{target}{part}.weight", f"{source}{name}.weight", shift=graph.norm_shift)
        for part, name in graph.norms.items()
    ]
    turned = {"attn_q": n, "attn_k": n_kv} if graph.neighbours else {}
    for part, name in graph.matrices.items():
        t = turned.get(part, 0)
        moves.append(
            Move(f"{target}{part}.weight", f"{source}{name}.weight", is_matrix=True, n_heads=t)
        )
        if part in graph.biases:
            moves.append(Move(f"{target}{part}.bias", f"{source}{name}.bias", n_heads=t))
    return moves


def _check_all_planned(graph: Graph, weights: Weights, moves: Iterable[Move], tied: bool) -> None:
    left = set(weights) - {move.source for move in moves}
    if tied:
        left.discard("lm_head.weight")
    left = {name for name in left if not name.endswith(_INERT)}
    if left:
        raise ModelError(
            f"llama.cpp's graph {graph.arch!r} has no place for {len(left)} of the model's "
            f"weights, {min(left)} is the first",
            hint="choose another target for this model, such as onnx",
        )


def _lacks(graph: Graph) -> str:
    return f"llama.cpp's graph {graph.arch!r} lacks it"
