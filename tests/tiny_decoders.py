"""Tiny seeded decoders of every family, with tokenizers built like those of the real models.

`make_decoder(folder, "qwen3")` writes a complete Hugging Face directory of a model 64 wide. Where a
family has a sliding window it is 8 tokens, so texts of some 30 tokens reach past it.
`make_embedder` makes of one what embedding models are published as.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SYSTEM = "you answer questions about parcels and refunds"
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "where is my parcel, I ordered it 12 days ago and it hasn't come",
    "please cancel order 4711; the refund is late",
    "hello world, hello again: how's it going? they're fine, we'll see",
    "a  b   c    d     e",
    "numbers 1 22 333 4444 2024-11-24 3.14",
    "我 的 包 裹 在 哪 里 退 款 什 么 时 候 到",
    "café déjà vu naïve Übergröße Straße",
    "def f(x):\n    return x + 1\n\nprint(f(2))",
    "user asks system answers assistant helps",
] * 4
TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHAT = ("<|im_start|>", "<|im_end|>")
_MARK = "▁"


def _words(
    regex: str | None, *, digits: bool = False, nfc: bool = False, whole: bool = False
) -> Any:
    """Byte-level BPE as of Llama 3, Qwen or SmolLM, trained on CORPUS."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE(ignore_merges=whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if regex is not None:
        steps.append(pre_tokenizers.Split(Regex(regex), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None))
    tok.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    if nfc:
        tok.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    tok.decoder = decoders.ByteLevel()
    return tok


def _pieces(*, prefix: bool) -> Any:
    """SentencePiece's BPE as transformers exports it: every split of a piece is a pair."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = learner.get_vocab()
    pieces = sorted((p for p in learned if len(p) > 1), key=lambda p: learned[p])
    letters = sorted({c for p in learned for c in p} | {_MARK})
    runs = [_MARK * n for n in range(2, 6)]
    order = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *dict.fromkeys([*runs, *pieces]),
        *letters,
    ]
    vocab = {piece: i for i, piece in enumerate(order)}
    pairs: list[tuple[str, str]] = []
    for piece in dict.fromkeys([*runs, *pieces]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        fit = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        pairs += sorted(fit, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    tok = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", _MARK)
    tok.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_MARK), replace]) if prefix else replace
    )
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tok.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tok


def make_tokenizer(kind: str) -> Any:
    """A tokenizer of one of the KINDS."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from edgelm.targets.gguf.vocab import pre

    begin: str | None = None
    end = "<|im_end|>"
    specials: list[Any] = ["<|endoftext|>", *_CHAT]
    if kind == "llama3":
        tok, begin = _words(pre.LLAMA3, whole=True), "<|begin_of_text|>"
        specials = [begin, "<|end_of_text|>", *_CHAT, "<|eot_id|>", "<|eom_id|>"]
        end = "<|eot_id|>"
    elif kind == "qwen":
        tok = _words(pre.QWEN2, nfc=True)
    elif kind == "tekken":
        tok, begin = _words(pre.TEKKEN, whole=True), "<s>"
        specials = ["<unk>", begin, "</s>", *_CHAT]
    elif kind == "smollm":
        tok = _words(None, digits=True)
    elif kind == "gpt2":
        tok = _words(None)
    elif kind in ("llama2", "gemma", "phi3"):
        tok, begin = _pieces(prefix=kind != "gemma"), "<s>"
        specials = ["<unk>", begin, "</s>", *_CHAT]
        if kind == "phi3":
            keep = [AddedToken("<unk>"), AddedToken("<s>"), AddedToken("<|endoftext|>")]
            drop = [AddedToken(name, rstrip=True) for name in (*_CHAT, "<|end|>")]
            tok.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
            specials, end = [*keep, *drop], "<|end|>"
    else:
        raise ValueError(kind)
    tok.add_special_tokens(specials)
    if kind == "gemma":  # as Gemma lists its runs of spaces and of lines
        runs = [_MARK * 2, _MARK * 3, "\n\n", "<h1>"]
        tok.add_tokens([AddedToken(run, normalized=False) for run in runs])
    names: dict[str, Any] = dict(eos_token=end, pad_token=end)
    if begin is not None:
        names["bos_token"] = begin
        if kind != "phi3":
            tok.post_processor = TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin} $B",
                special_tokens=[(begin, tok.token_to_id(begin))],
            )
    if "<unk>" in tok.get_vocab():
        names["unk_token"] = "<unk>"
    return PreTrainedTokenizerFast(tokenizer_object=tok, chat_template=TEMPLATE, **names)


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.5 * i for i in range(8)],
}
_GEMMA = dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=8)
# name -> (model_type, kind of tokenizer, config); a name after a dash is a trait of the family
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama3", {"rope_parameters": _LLAMA3_ROPE}),
    "llama-tied-biases": (
        "llama",
        "llama2",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama-linear": (
        "llama",
        "gpt2",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama-yarn": ("llama", "gpt2", {"rope_parameters": _YARN}),
    "llama-longrope": (
        "llama",
        "gpt2",
        {"rope_parameters": _LONG | {"original_max_position_embeddings": 64, "factor": 2.0}},
    ),
    "smollm": ("llama", "smollm", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "smollm3": ("smollm3", "llama3", {}),
    "mistral": ("mistral", "tekken", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen", {}),
    "qwen2-yarn": (
        "qwen2",
        "qwen",
        {"tie_word_embeddings": True, "rope_parameters": _YARN | {"attention_factor": 1.3}},
    ),
    "qwen3": ("qwen3", "qwen", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        "gemma",
        _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3_text", "gemma", _GEMMA | {"num_hidden_layers": 7}),
    "gemma3-pattern": (
        "gemma3_text",
        "gemma",
        _GEMMA
        | {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "final_logit_softcapping": 4.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("phi3", "phi3", {"partial_rotary_factor": 0.75}),
    "phi3-longrope": (
        "phi3",
        "phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 64},
    ),
}
FAMILIES = ("llama", "smollm", "smollm3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
KINDS = ("llama3", "llama2", "gemma", "phi3", "qwen", "tekken", "smollm", "gpt2")


def make_decoder(
    folder: Path,
    name: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    end_ids: Sequence[str] = (),
    **config: Any,
) -> Path:
    """Write the model `name` of DECODERS into `folder`; `end_ids` are further tokens that end an
    answer, `config` overrides the model's configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    model_type, kind, traits = DECODERS[name]
    tokenizer = make_tokenizer(kind)
    dims: dict[str, Any] = dict(
        vocab_size=len(tokenizer) + 3,  # tables are often a little longer than the vocabulary
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    cfg = AutoConfig.for_model(model_type, **(dims | traits | config))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(cfg).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
            elif key.endswith("bias"):
                parameter.normal_(0, 0.2)
            else:  # norms; Gemma's weights are added to 1
                parameter.normal_(0 if model_type.startswith("gemma") else 1, 0.1)
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(end_ids))]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends if end_ids else ends[0]
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_embedder(
    folder: Path, name: str = "qwen3", pooling: str = "lasttoken", **config: Any
) -> Path:
    """As Qwen3-Embedding: the model without its head, a tokenizer that ends texts with a token, and
    the files of sentence-transformers, which pool (`lasttoken`, `mean_tokens`) and normalize."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModel, AutoTokenizer

    make_decoder(folder, name, **config)
    AutoModel.from_pretrained(folder, dtype="auto").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    end = str(tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B {end}",
        special_tokens=[(end, tokenizer.eos_token_id)],
    )
    tokenizer.save_pretrained(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            f"pooling_mode_{pooling}": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": "Instruct: find an answer\nQuery:", "document": ""}
        },
    }
    for file, values in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder
