"""llama.cpp's graphs: which edgelm writes, which it runs, and the bounds of every key it takes.

A graph or a key that is not here is refused. Some end the process when they do not fit: layers
that predict further tokens, recurrent states.
"""

from __future__ import annotations

from edgelm.targets.gguf.plan import POOLING_TYPES

MAX_LAYERS = 512  # llama.cpp's own bound
MAX_CONTEXT = 2**20
MAX_EXPERTS = 1024  # llama.cpp's own bound

HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
KEY, VALUE, ROPE = "attention.key_length", "attention.value_length", "rope.dimension_count"
CAUSAL, POOLING = "attention.causal", "pooling_type"
EXPERTS, EXPERTS_USED = "expert_count", "expert_used_count"
PATTERN = "attention.sliding_window_pattern"
SCALING = "rope.scaling.type"
_WINDOW = "attention.sliding_window"
_EPS, _RMS_EPS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
_LABELS, _POOLING_OF_HEAD = "classifier.output_labels", "classifier.pooling_type"
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_COUNTS = ("context_length", "embedding_length", "block_count", "feed_forward_length")

# Keys of the graphs that edgelm writes and unpacks, without the graph's name before them.
_ENCODER = (*_COUNTS, HEADS, _EPS, CAUSAL, POOLING, _LABELS, "vocab_size")
_DECODER = (
    *_COUNTS,
    HEADS,
    KV_HEADS,
    KEY,
    VALUE,
    _RMS_EPS,
    ROPE,
    "rope.freq_base",
    SCALING,
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "vocab_size",
    POOLING,
)
ENCODER_KEYS: dict[str, tuple[str, ...]] = {
    "bert": _ENCODER,
    "modern-bert": (
        *_ENCODER,
        _POOLING_OF_HEAD,
        "hidden_activation",
        _WINDOW,
        PATTERN,
        "rope.freq_base",
        "rope.freq_base_swa",
        SCALING,
    ),
}
DECODER_KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "smollm3", "qwen2", "qwen3"), _DECODER),
    "phi3": (*_DECODER, _WINDOW),  # which llama.cpp reads and does not use
    "gemma2": (*_DECODER, _WINDOW, PATTERN, *_SOFT_CAPS),
    "gemma3": (*_DECODER, _WINDOW, PATTERN, "rope.freq_base_swa", "final_logit_softcapping"),
}
# Graphs that edgelm runs, but does not write: llama.cpp's own script does, of models that
# transformers has. Each computes with the keys below alone, and asserts nothing of others.
OTHER_ENCODERS = frozenset({"eurobert", "jina-bert-v3", "nomic-bert"})
OTHER_DECODERS = frozenset(
    (
        "apertus arcee bitnet bloom chatglm cohere2 command-r dbrx dots1 ernie4_5 exaone4 falcon "
        "gemma glm4 gpt-oss gpt2 gptneox granite granitemoe hunyuan-dense hunyuan-moe jais2 "
        "minimax-m2 mpt nemotron olmo olmo2 olmoe phi2 phimoe qwen2moe qwen3moe seed_oss stablelm "
        "starcoder starcoder2"
    ).split()
)
ENCODERS, DECODERS = ENCODER_KEYS.keys() | OTHER_ENCODERS, DECODER_KEYS.keys() | OTHER_DECODERS
# Graphs that turn a part of each head with the position; the others end the process at it.
TURNS_PART = frozenset({"chatglm", "glm4", "gptneox", "nemotron", "phi2", "phi3", "stablelm"})

# Whole numbers: (least, most) where they are stated
COUNTS: dict[str, tuple[int, int]] = {
    "context_length": (1, MAX_CONTEXT),
    "embedding_length": (1, 2**20),
    "block_count": (1, MAX_LAYERS),
    "feed_forward_length": (1, 2**24),
    "vocab_size": (1, 2**31 - 1),
    HEADS: (1, 2**12),
    KV_HEADS: (1, 2**12),
    KEY: (1, 2**12),
    VALUE: (1, 2**12),
    ROPE: (1, 2**12),
    "rope.scaling.original_context_length": (1, 2**31 - 1),
    _WINDOW: (0, 2**30 - 1),
    POOLING: (0, 4),
    _POOLING_OF_HEAD: (1, 2),
    EXPERTS: (0, MAX_EXPERTS),
    EXPERTS_USED: (0, MAX_EXPERTS),
    "expert_shared_count": (0, MAX_EXPERTS),
    "expert_feed_forward_length": (1, 2**24),
    "expert_shared_feed_forward_length": (1, 2**24),
    "expert_gating_func": (1, 4),
    "leading_dense_block_count": (0, MAX_LAYERS),
}
NEEDED = (*_COUNTS, HEADS)
# Floats, finite and not below 0
NUMBERS = frozenset(
    {
        _EPS,
        _RMS_EPS,
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "attention.scale",
        "embedding_scale",
        "residual_scale",
        "logit_scale",
        "expert_weights_scale",
        *_SOFT_CAPS,
    }
)
FLAGS = frozenset(
    {CAUSAL, "use_parallel_residual", "rope.scaling.finetuned", "expert_weights_norm"}
)
SCALINGS = ("none", "linear", "yarn", "longrope")
# Keys that have rules of their own, or none: what is unknown there is ignored or thrown at
_OTHERS = frozenset({SCALING, PATTERN, _LABELS, "hidden_activation", "tensor_data_layout"})
ALL_KEYS = COUNTS.keys() | NUMBERS | FLAGS | _OTHERS
OF_ENCODERS = frozenset({_POOLING_OF_HEAD, _LABELS})
DECODER_POOLING = (0, POOLING_TYPES["mean"], POOLING_TYPES["last"])  # 0 is none
# What a graph that edgelm does not write may read beside its own keys
PREFIXES = ("general.", "tokenizer.", "xielu.")
