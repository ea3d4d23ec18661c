"""config.json and generation_config.json out of a file's keys and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgelm.targets.gguf.decoders import BY_WIDTH, PATTERNS
from edgelm.targets.gguf.plan import POOLING_TYPES, Config
from edgelm.targets.gguf.rope import plan_rope
from edgelm.targets.gguf.unpack.file import File

_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_DTYPES = {0: "float32", 1: "float16", 30: "bfloat16"}


def read_config(file: File) -> dict[str, Any]:
    """What config.json of the family says. Raises ValueError for what it cannot say."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    keys, graph = file.keys, file.graph
    heads, width = int(keys["attention.head_count"]), int(keys["embedding_length"])
    size = int(keys.get("attention.key_length", keys.get("rope.dimension_count", width // heads)))
    if file.family == "phi3":
        size = int(keys.get("attention.key_length", width // heads))
    activation, value = graph.activation
    ends = file.end_ids()
    table = file.tensors["token_embd.weight"]
    config: dict[str, Any] = {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[file.family]],
        "model_type": file.family,
        "dtype": _DTYPES.get(int(table.tensor_type), "float32"),
        "vocab_size": int(table.shape[1]),
        "hidden_size": width,
        "intermediate_size": int(keys["feed_forward_length"]),
        "num_hidden_layers": int(keys["block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(keys.get("attention.head_count_kv", heads)),
        "head_dim": size,
        "max_position_embeddings": int(keys["context_length"]),
        "rms_norm_eps": _rounded(keys["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.token_id("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.token_id("padding"),
        activation: value,
        "rope_parameters": _rope(file, size),
    }
    if file.family == "llama":
        config |= {key: _has_biases(file, parts) for key, parts in _BIASES.items()}
    elif file.family in ("qwen3", "smollm3"):
        config["attention_bias"] = False
    if file.family.startswith("gemma"):
        config |= _gemma(file, heads, width, size)
    if file.family == "phi3":
        config["sliding_window"] = int(keys.get("attention.sliding_window", 0)) or None
        if _FACTORS[0] in file.tensors:
            original = config["rope_parameters"]["original_max_position_embeddings"]
            config["original_max_position_embeddings"] = original
    return config


_BIASES = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}


def read_generation_config(file: File) -> dict[str, Any]:
    """What generation_config.json says of the tokens that begin and end."""
    ends = file.end_ids()
    found = {
        "bos_token_id": file.token_id("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.token_id("padding"),
    }
    return {key: value for key, value in found.items() if value is not None}


def read_modules(file: File) -> dict[str, Any]:
    """The files of sentence-transformers that say how vectors are pooled, by their names; none of a
    file that does not say it."""
    kinds = {POOLING_TYPES["mean"]: "mean_tokens", POOLING_TYPES["last"]: "lasttoken"}
    kind = kinds.get(file.keys.get("pooling_type", 0))
    if kind is None:
        return {}
    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(parts)
    ]
    width = int(file.keys["embedding_length"])
    pooling = {"word_embedding_dimension": width, f"pooling_mode_{kind}": True}
    return {"modules.json": modules, "1_Pooling/config.json": pooling}


def _has_biases(file: File, parts: tuple[str, ...]) -> bool:
    found = {f"blk.0.{part}.bias" in file.tensors for part in parts}
    if len(found) > 1:
        raise ValueError(f"only some of {', '.join(parts)} have a bias, which Llama does not know")
    return found.pop()


def _rope(file: File, size: int) -> dict[str, Any]:
    keys = file.keys
    theta = float(keys.get("rope.freq_base", 10_000.0))
    kind = keys.get("rope.scaling.type", "none")
    settings: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    n_rot = int(keys.get("rope.dimension_count", size))
    if n_rot != size:
        settings["partial_rotary_factor"] = n_rot / size
    factor = float(keys.get("rope.scaling.factor", 0.0))
    original = int(keys.get("rope.scaling.original_context_length", keys["context_length"]))
    attention = keys.get("rope.scaling.attn_factor")
    tables = [file.table(name) for name in _FACTORS]
    if "rope_freqs.weight" in file.tensors:
        settings |= _llama3(file, theta, n_rot)
    elif tables[0] is not None:
        settings |= {"rope_type": "longrope", "short_factor": tables[0], "long_factor": tables[1]}
        settings |= {"original_max_position_embeddings": original}
        settings |= {"attention_factor": 1.0 if attention is None else float(attention)}
    elif kind == "linear" and factor not in (0.0, 1.0):
        settings |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        settings |= {"rope_type": "yarn", "factor": factor}
        settings |= {"original_max_position_embeddings": original}
        if attention is not None:  # llama.cpp multiplies the usual one by it
            usual = 1.0 if factor <= 1 else 0.1 * float(np.log(factor)) + 1.0
            settings["attention_factor"] = float(attention) * usual
    elif kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type is {kind!r} without a table of factors")
    if file.family == "gemma3_text":
        local = float(keys.get("rope.freq_base_swa", 10_000.0))
        return {
            "full_attention": settings,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    return settings


def _llama3(file: File, theta: float, n_rot: int) -> dict[str, Any]:
    """The file holds a factor for each pair, config.json the rule: the one of Llama 3.1 and 3.2,
    whose largest factor is the rule's own. Other writers do not state the original length."""
    stated = np.asarray(file.table("rope_freqs.weight"), dtype=np.float32)
    rule: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(stated.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    for original in (file.keys.get("rope.scaling.original_context_length"), 8192):
        if original is None:
            continue
        rule["original_max_position_embeddings"] = int(original)
        made = plan_rope(Config({}), Config(rule), n_rot, ("llama3",), 1).tables
        if np.allclose(made["rope_freqs.weight"], stated, rtol=1e-4):
            return rule
    raise ValueError("rope_freqs.weight does not follow the rule of Llama 3")


def _gemma(file: File, heads: int, width: int, size: int) -> dict[str, Any]:
    keys, n_layers = file.keys, int(file.keys["block_count"])
    every, by_width = PATTERNS[file.graph.arch], n_layers == BY_WIDTH[file.graph.arch]
    usual = [(i + 1) % every != 0 for i in range(n_layers)]
    slides = keys.get("attention.sliding_window_pattern", usual)
    window = int(keys.get("attention.sliding_window", 4096 if file.family == "gemma2" else 0))
    kinds = ["sliding_attention" if s and window else "full_attention" for s in slides]
    config: dict[str, Any] = {
        "query_pre_attn_scalar": width // heads if by_width else size,
        "sliding_window": window or 4096,
        "layer_types": kinds,
    }
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    for key, default in caps.items():
        config[key] = keys.get(key, default if file.family == "gemma2" else None)
    return config


def _rounded(value: float) -> float:
    """The shortest number of the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
