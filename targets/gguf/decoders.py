"""The decoder families this target lowers, for generation and for embeddings: config.json's
model_type -> its graph.

What is not in llama.cpp's graph of a family: sliding windows of Mistral, Qwen and Phi-3 (so the
context ends where the window would begin to matter) and switched-off soft caps of Gemma 2.
"""

from __future__ import annotations

import math
from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.llama import ATTENTION, FEED_FORWARD, HEAD_NORMS, NORMS, Graph, Heads
from edgelm.targets.gguf.plan import Config
from edgelm.targets.gguf.rope import rope_settings

_QKV_BIASES = ("attn_q", "attn_k", "attn_v")
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_MATRICES = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
# Layers of the models whose queries Gemma scales by the width of a share of the hidden state, and
# not by the size of a head; llama.cpp knows them by that number.
BY_WIDTH = {"gemma2": 46, "gemma3": 62}
PATTERNS = {"gemma2": 2, "gemma3": 6}  # every so manieth layer looks back without bounds


def _stated_window(default: int | None) -> Any:
    def window(config: Config) -> int | None:
        value = config.values.get("sliding_window", default)
        return None if value is None else config.count("sliding_window", default)

    return window


def _window_in_use(config: Config) -> int | None:
    """Qwen and SmolLM3 state a window that a switch, or their layers' types, turn off."""
    if not config.get("use_sliding_window", False):
        return None
    kinds = config.get("layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return _stated_window(4096)(config)


def _smollm3(config: Config, heads: Heads) -> dict[str, Any]:
    """llama.cpp leaves every fourth layer without positions."""
    n_layers = config.count("num_hidden_layers")
    every = config.count("no_rope_layer_interval", 4)
    usual = [int((i + 1) % 4 != 0) for i in range(n_layers)]
    turns = config.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(n_layers)])
    if list(turns) != usual:
        raise config.refusal(
            "no_rope_layers", turns, "llama.cpp leaves the positions out of every fourth layer"
        )
    return {}


def _phi3(config: Config, heads: Heads) -> dict[str, Any]:
    """llama.cpp reads the window and does not use it; who unpacks the file does."""
    return {"attention.sliding_window": _stated_window(None)(config) or 0}


def _gemma2(config: Config, heads: Heads) -> dict[str, Any]:
    keys = _gemma("gemma2", config, heads)
    for key, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        value = config.number(key, default)
        if not 0 < value < math.inf:
            raise config.refusal(key, value, "llama.cpp's graph for Gemma 2 always caps")
        keys[key] = value
    return keys


def _gemma3(config: Config, heads: Heads) -> dict[str, Any]:
    keys = _gemma("gemma3", config, heads)
    if config.get("attn_logit_softcapping", None) is not None:
        raise config.refusal(
            "attn_logit_softcapping",
            config.values["attn_logit_softcapping"],
            "llama.cpp's graph for Gemma 3 lacks it",
        )
    cap = config.get("final_logit_softcapping", None)
    if cap is not None:
        keys["final_logit_softcapping"] = config.number("final_logit_softcapping", None)
    local = rope_settings(
        Config({"rope_theta": config.get("rope_local_base_freq", 10_000.0), **_rope_of(config)}),
        10_000.0,
        "sliding_attention",
    )
    local.require("rope_type", "default", ("default",), "llama.cpp scales full layers only")
    keys["rope.freq_base_swa"] = local.number("rope_theta", None)
    return keys


def _rope_of(config: Config) -> dict[str, Any]:
    """What layers with a window take of the settings: only those stated for them."""
    stated = config.get("rope_parameters", {})
    own = stated.get("sliding_attention") if isinstance(stated, dict) else None
    positions = {"max_position_embeddings": config.count("max_position_embeddings")}
    return positions | ({"rope_parameters": {"sliding_attention": own}} if own else {})


def _gemma(arch: str, config: Config, heads: Heads) -> dict[str, Any]:
    config.require("use_bidirectional_attention", False, (False,), "the graph looks back only")
    n_layers, width = config.count("num_hidden_layers"), config.count("hidden_size")
    scaled_by = width // heads.n if n_layers == BY_WIDTH[arch] else heads.size
    config.require(
        "query_pre_attn_scalar", 256, (scaled_by,), f"llama.cpp's graph {arch!r} has its own"
    )
    slides = _slides(arch, config, n_layers)
    if not any(slides) and arch == "gemma3":
        return {}
    keys: dict[str, Any] = {"attention.sliding_window": config.count("sliding_window", 4096)}
    if slides != [(i + 1) % PATTERNS[arch] != 0 for i in range(n_layers)]:
        keys["attention.sliding_window_pattern"] = slides
    return keys


def _slides(arch: str, config: Config, n_layers: int) -> list[bool]:
    """Which layers look through the window."""
    kinds = config.get("layer_types", None)
    if kinds is None:
        every = PATTERNS[arch]
        for key in ("sliding_window_pattern", "_sliding_window_pattern"):
            every = config.count(key, every)
        return [(i + 1) % every != 0 for i in range(n_layers)]
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != n_layers or set(kinds) - known:
        raise ModelError(
            f"config.json: layer_types does not say one known type for {n_layers} layers"
        )
    return [kind == "sliding_attention" for kind in kinds]


LLAMA = Graph(
    "llama",
    biases=(*ATTENTION, *FEED_FORWARD),
    neighbours=True,
    rope_kinds=("linear", "yarn", "llama3", "longrope"),
)
DECODERS: dict[str, Graph] = {
    "llama": LLAMA,  # SmolLM and SmolLM2 too
    "mistral": Graph(
        "llama",
        neighbours=True,
        rope_kinds=LLAMA.rope_kinds,
        window=_stated_window(4096),
    ),
    "smollm3": Graph(
        "smollm3",
        biases=_QKV_BIASES,
        neighbours=True,
        theta=2_000_000.0,
        tied=True,
        window=_window_in_use,
        more=_smollm3,
    ),
    "qwen2": Graph("qwen2", biases=_QKV_BIASES, free_heads=False, window=_window_in_use),
    "qwen3": Graph("qwen3", norms=NORMS | HEAD_NORMS, biases=_QKV_BIASES, window=_window_in_use),
    "gemma2": Graph(
        "gemma2",
        norms=_GEMMA_NORMS,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        rope_kinds=(),
        norm_shift=1.0,
        must_tie=True,
        tied=True,
        more=_gemma2,
    ),
    "gemma3_text": Graph(
        "gemma3",
        norms=_GEMMA_NORMS | HEAD_NORMS,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        rope_kinds=("linear",),
        norm_shift=1.0,
        theta=1_000_000.0,
        tied=True,
        more=_gemma3,
    ),
    "phi3": Graph(
        "phi3",
        matrices=_PHI3_MATRICES,
        turns_part=True,
        free_heads=False,
        rope_kinds=("longrope",),
        epsilon=1e-5,
        window=_stated_window(None),
        more=_phi3,
    ),
}
