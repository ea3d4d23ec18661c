"""What the card says of generation."""

from __future__ import annotations

from edgelm.compiler.report.blocks import CardParts
from edgelm.compiler.report.comparison import variant_size
from edgelm.compiler.report.data import DecoderData
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    markdown,
    markdown_table,
    megabytes,
    plural,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Manifest, Variant


def card_parts(data: DecoderData) -> CardParts:
    """In Markdown."""
    manifest, report = data.manifest, data.data
    n = manifest.text.max_tokens
    return CardParts(
        answers=f"{_answers(data)} Prompt and answer together have up to {count(n)} tokens.",
        python=_python(data),
        shell='"a question"' if manifest.task.chat else '"The beginning of a text"',
        variants=_variants(data),
        data=f"{plural(report.n_train, 'training row')}, "
        f"{plural(report.n_eval, 'evaluation row')}; "
        f"{plural(report.n_overlap, 'evaluation row')} left out: what they ask is asked in "
        "the training data.",
        notes=report.notes,
        limits=[
            f"All figures are of {plural(data.n_texts, 'text')} of the evaluation data and hold "
            "for texts like those. Which languages and subjects it answers well is not known "
            "beyond that data.",
            "It may say what is wrong, and say it well: its answers need a check wherever they "
            "matter.",
            "Its variants may answer the same prompt in other words: two tokens that are about as "
            "likely are enough for that.",
        ],
        verified=[
            "The bundle's tokenizer and chat template give the same token ids and prompts as "
            "Hugging Face's on all evaluation texts and on a list of awkward ones.",
            f"Each variant was run by its own engine on {plural(data.n_targets, 'token')} of the "
            f"evaluation data and on {plural(data.n_answers, 'prompt')}, and compared with the "
            "Hugging Face model; a variant over its limits does not enter a bundle.",
            *_gain(data),
        ],
    )


def _answers(data: DecoderData) -> str:
    if data.manifest.task.chat:
        return "Answers a conversation, or a question, with text."
    return "Continues a text."


def _python(data: DecoderData) -> str:
    if data.manifest.task.chat:
        return (
            'messages = [{"role": "user", "content": "a question"}]\n'
            "print(model.predict(messages).text)\n"
            "for piece in model.stream(messages, max_tokens=200):\n"
            '    print(piece.text, end="", flush=True)'
        )
    return 'print(model.predict("The beginning of a text", max_tokens=50).text)'


def _variants(data: DecoderData) -> str:
    reference = data.manifest.reference
    head = ["variant", "size, MB", "perplexity", "KL, nats", "same top token", "gain kept"]
    head += ["first token, ms", "prompt tokens/s", "answer tokens/s", "memory, MB"]
    rows = [["reference, fp32", DASH, decimal(reference.get("perplexity")), *[DASH] * 7]]
    if original := data.manifest.original:  # before it was made smaller
        rows.insert(0, ["original, fp32", DASH, decimal(original.get("perplexity")), *[DASH] * 7])
    rows += [_variant(v) for v in data.manifest.variants]
    return (
        f"{markdown_table(head, rows)}\n\nThe reference is the Hugging Face model. KL divergence "
        "is of the next token, its mean; `same top token` is how often the likeliest one is the "
        "reference's; `gain kept` is what is left of what fine-tuning lowered the loss by. Times "
        "are of one prompt of median length, on the machine that compiled. `report.html` shows "
        "more."
    )


def _variant(v: Variant) -> list[str]:
    p, m = v.parity, v.measured
    return [
        markdown(v.name),
        megabytes(variant_size(v)),
        decimal(v.metrics.get("perplexity")),
        small(p and p.kl_divergence),
        decimal(p and p.agreement),
        decimal(p and p.gain_kept),
        three_digits(m and m.first_token_ms),
        count(m and m.prompt_tokens_per_s),
        three_digits(m and m.answer_tokens_per_s),
        megabytes(m and m.memory_bytes),
    ]


def tuned_loss(manifest: Manifest) -> float | None:
    """The loss after the fine-tuning, before the model was made smaller."""
    return (manifest.original or manifest.reference).get("loss")


def _gain(data: DecoderData) -> list[str]:
    before, after = data.manifest.reference.get("base_loss"), tuned_loss(data.manifest)
    if before is None or after is None or after >= before:
        return []
    return [
        f"Fine-tuning took the loss on these tokens from {decimal(before)} to {decimal(after)} "
        "nats; a variant that keeps too little of that gain does not enter a bundle."
    ]
