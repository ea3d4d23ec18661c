"""Tiny seeded models and tokenizers, made on the spot: nothing is downloaded.

`make_model(folder, family, …)` writes a complete Hugging Face directory (config.json,
model.safetensors, tokenizer.json, tokenizer_config.json) of a 2-layer, 32-wide encoder. Weights
are drawn wider than Hugging Face's default so that logits spread and a wrong head is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelm.compiler.nasty import NASTY as NASTY

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")

WORDS = (
    "i lost my card where is the parcel refund please order cancel now how do you reset a "
    "password late broken item wrong size change address login invoice help thanks hello bank "
    "account money transfer price too high good bad happy angry return exchange ship today"
).split()
CORPUS = [" ".join(WORDS[i : i + 5]) for i in range(len(WORDS) - 5)] + [
    "我 的 卡 丢 了 怎 么 办",
    "退 款 什 么 时 候 到",
    "café déjà vu naïve",
    "order #12345 costs $9.99!",
]

# the trainers of WordPiece and Unigram break ties by chance, so their pieces are stated here
_ALPHABET = sorted({c for line in CORPUS for c in line.lower() if not c.isspace()})
_PIECES = sorted({w for w in WORDS if len(w) > 1 and w[0] < "p"})  # other words fall into pieces


def make_tokenizer(family: str) -> Any:
    """A fast tokenizer of the family's kind, trained on CORPUS where that gives one result."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    if family in ("bert", "distilbert"):
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*specials, *_ALPHABET, *(f"##{c}" for c in _ALPHABET), *_PIECES]
        pieces += [f"##{word[-2:]}" for word in _PIECES]
        vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tok.add_special_tokens(specials)
        tok.normalizer = normalizers.BertNormalizer(lowercase=True)
        tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        tok.decoder = decoders.WordPiece()
        names: dict[str, Any] = dict(
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
        if family == "bert":
            names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    elif family == "roberta":
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=500,
                special_tokens=specials,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
        tok.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
        tok.decoder = decoders.ByteLevel()
        names = dict(
            bos_token="<s>",
            cls_token="<s>",
            eos_token="</s>",
            sep_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
        )
    elif family == "xlm-roberta":
        specials = ["<s>", "<pad>", "</s>", "<unk>"]
        pieces = ["▁", *(f"▁{word}" for word in _PIECES), *(w[-2:] for w in _PIECES), *_ALPHABET]
        scored = [(piece, -3.0 - 0.02 * i) for i, piece in enumerate(dict.fromkeys(pieces))]
        tok = Tokenizer(models.Unigram([*((s, 0.0) for s in specials), *scored], unk_id=3))
        tok.add_special_tokens(specials)
        tok.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tok.pre_tokenizer = pre_tokenizers.Metaspace()
        tok.add_special_tokens(["<mask>"])
        tok.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
        tok.decoder = decoders.Metaspace()
        names = dict(
            bos_token="<s>",
            cls_token="<s>",
            eos_token="</s>",
            sep_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
        )
    elif family == "modernbert":
        specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
        tok = Tokenizer(models.BPE())
        tok.normalizer = normalizers.NFC()
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=500,
                special_tokens=specials,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
        tok.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
        tok.decoder = decoders.ByteLevel()
        names = dict(
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
            mask_token="[MASK]",
        )
    else:
        raise ValueError(family)
    return PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=64, **names)


def make_config(family: str, vocab_size: int, pad_id: int, **extra: Any) -> Any:
    """A 2-layer config: hidden size 32, 4 heads, 64 in the feed-forward."""
    from transformers import AutoConfig

    dims: dict[str, Any] = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=pad_id,
    )
    if family == "distilbert":
        dims = dict(
            vocab_size=vocab_size,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=64,
            pad_token_id=pad_id,
        )
    elif family in ("roberta", "xlm-roberta"):
        dims |= dict(max_position_embeddings=66 + pad_id, type_vocab_size=1)
    elif family == "modernbert":
        dims |= dict(
            bos_token_id=1,
            cls_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
            num_hidden_layers=4,
            global_attn_every_n_layers=3,
            local_attention=16,
            max_position_embeddings=64,
            reference_compile=False,
        )
    return AutoConfig.for_model(family, **dims | extra)


def make_model(
    folder: Path,
    family: str = "bert",
    *,
    labels: tuple[str, ...] | None = ("card_lost", "refund", "other"),
    multi_label: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write the model into `folder`; with `labels` None it is a bare encoder for embeddings."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(family)
    extra: dict[str, Any] = dict(config)
    if labels is not None:
        extra |= dict(
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type=(
                "multi_label_classification" if multi_label else "single_label_classification"
            ),
        )
    cfg = make_config(family, len(tokenizer), tokenizer.pad_token_id, **extra)
    auto = AutoModel if labels is None else AutoModelForSequenceClassification
    model = auto.from_config(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:  # norm weights
                parameter.normal_(1, 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
