"""A tiny seeded Llama with a byte-level tokenizer and a chat template, and chats for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] %}{{ m['content'] }}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "where is my order", "your order is on its way", "please refund my money",
    "the refund takes three days", "I lost my card", "we block the card now",
    "user assistant system tool", "hello how can I help you today",
]  # fmt: skip


def make_tokenizer(
    template: str | None = CHATML, specials: list[str] | None = None, vocab_size: int = 420
) -> Any:
    """Byte-level BPE; the end token is <|im_end|>, and there is no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = SPECIALS if specials is None else specials
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet
    )
    tok.train_from_iterator(TEXTS, trainer)
    tok.decoder = decoders.ByteLevel()
    eos = "<|im_end|>" if "<|im_end|>" in specials else specials[0]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=eos)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def make_chat_model(
    folder: Path,
    *,
    template: str | None = CHATML,
    tied: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    family: str = "llama",
    **config: Any,
) -> Path:
    """A complete Hugging Face directory of a 2-layer, 32-wide decoder with grouped queries."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(template)
    dims: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=256,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**dims, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A row of messages; the turns are the user's and the assistant's, one after the other."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def chat_rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    """n different chats with a rule to learn: the answer to a question is always the same."""
    pairs = [(TEXTS[i], TEXTS[i + 1]) for i in (0, 2, 4)]
    rows: list[dict[str, Any]] = []
    for i in range(start, start + n):
        question, answer = pairs[i % len(pairs)]
        rows.append(chat(f"{question} {i}", answer))
    return rows
