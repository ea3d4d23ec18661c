"""What the page says of generation."""

from __future__ import annotations

from typing import Any

from edgelm.compiler.limits import Limits
from edgelm.compiler.report import sections
from edgelm.compiler.report.blocks import (
    Block,
    CardParts,
    Cell,
    Details,
    Facts,
    Figure,
    Figures,
    Items,
    Paragraph,
    Section,
    Table,
    row,
)
from edgelm.compiler.report.comparison import limited, variant_size
from edgelm.compiler.report.data import DecoderData
from edgelm.compiler.report.decoder_card import card_parts, tuned_loss
from edgelm.compiler.report.plots import Point, size_plot
from edgelm.compiler.report.sections import TEXT_SHOWN
from edgelm.compiler.report.text import (
    DASH,
    MINUS,
    count,
    decimal,
    file_name,
    finite,
    megabytes,
    plural,
    shorten,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Measured, Parity, Variant

ANSWER_SHOWN = 400  # characters
KINDS = {
    "messages": "conversations",
    "instruction": "instructions with their answers",
    "prompt": "prompts with their completions",
    "text": "texts",
}


class DecoderKind:
    """Chats and texts that are continued."""

    def __init__(self, data: DecoderData) -> None:
        self._data = data

    def does(self) -> str:
        """`answers conversations`."""
        return "answers conversations" if self._data.manifest.task.chat else "continues texts"

    def length(self) -> str:
        """The context."""
        n = self._data.manifest.text.max_tokens
        return f"Prompt and answer together have up to {count(n)} tokens."

    def facts(self, variant: Variant) -> list[str]:
        """Size, speed, closeness, what is left of the fine-tuning."""
        parity, measured = variant.parity, variant.measured
        facts: list[str] = []
        if (size := variant_size(variant)) is not None:
            facts.append(f"{megabytes(size)} MB")
        if measured and finite(measured.answer_tokens_per_s):
            facts.append(f"{three_digits(measured.answer_tokens_per_s)} tokens/s of an answer")
        if parity is None:
            return facts
        facts.append(f"mean KL divergence {small(parity.kl_divergence)} nats")
        if parity.agreement is not None and finite(parity.agreement):
            facts.append(f"the likeliest token is the reference's for {parity.agreement:.1%}")
        if parity.gain_kept is not None and finite(parity.gain_kept):
            facts.append(f"{parity.gain_kept:.1%} of the fine-tuning's gain kept")
        return facts

    def sections(self) -> list[Section]:
        """Variants, worst examples, training, data."""
        data = self._data
        intro = (
            "The prompts to which each variant's greedy answer parts first from the reference's. "
            "Two tokens that are about as likely are enough for that: an answer that parts is "
            "not a worse one."
        )
        head = ("prompt", "reference", "variant", "apart at token")
        worst = sections.worst_examples(
            data, intro, head, n_answer=ANSWER_SHOWN, difference=lambda at: decimal(at, 0)
        )
        return [_variants(data), worst, sections.training(data), _data(data)]

    def card(self) -> CardParts:
        """The card's words."""
        return card_parts(self._data)


def _variants(data: DecoderData) -> Section:
    """How close, how small; then how fast."""
    manifest, reference = data.manifest, data.manifest.reference
    head = (
        "variant", "target", "precision", "size MB", "bits a weight", "perplexity", "ratio",
        "KL, mean", "KL, 99.9 %", "same top token", "gain kept", "equal answers", "apart at token",
    )  # fmt: skip
    first = ["reference", "transformers", "fp32", DASH, DASH, decimal(reference.get("perplexity"))]
    rows = [row(*first, *[DASH] * (len(head) - len(first)))]
    if manifest.original:  # the reference is a smaller model's
        original = ["original", *first[1:-1], decimal(manifest.original.get("perplexity"))]
        rows.insert(0, row(*original, *[DASH] * (len(head) - len(original))))
    for v in manifest.variants:
        cells: list[str | Cell] = [v.name, v.target, v.precision, megabytes(variant_size(v))]
        bits = 8 * (variant_size(v) or float("nan")) / data.n_parameters
        cells += [decimal(bits, 2), decimal(v.metrics.get("perplexity"))]
        rows.append(row(*cells, *_closeness(v.parity, data.limits.get(v.name))))
    n = max((v.parity.n for v in manifest.variants if v.parity), default=0)
    caption = (
        f"Perplexity is of {plural(data.n_targets, 'token')} of {plural(data.n_texts, 'text')} of "
        f"the evaluation data; KL divergence (nats) and the likeliest token are of {count(n)} of "
        f"these. Of {plural(data.n_answers, 'greedy answer')}: the share that is equal to its end, "
        "and the median token at which the others part. MB is a million bytes."
    )
    if manifest.original:
        caption += " Original is the model before it was made smaller, reference what was made."
    if data.limits:
        caption += " The small numbers are limits."
    blocks: list[Block] = [Table(head, tuple(rows), n_text=3, caption=caption)]
    blocks += [Paragraph(text)] if (text := _gain(data)) else []
    blocks += _speeds(data)
    blocks += _plots(data)
    return Section("variants", "Variants", tuple(blocks))


def _closeness(parity: Parity | None, limits: Limits | None) -> list[str | Cell]:
    if parity is None:
        return [DASH] * 7
    return [
        limited(
            decimal(parity.perplexity_ratio), "≤", limits and decimal(limits.max_perplexity_ratio)
        ),
        limited(small(parity.kl_divergence), "≤", limits and small(limits.max_kl)),
        limited(small(parity.kl_p999), "≤", limits and small(limits.max_kl_p999)),
        limited(decimal(parity.agreement), "≥", limits and decimal(limits.min_agreement)),
        limited(decimal(parity.gain_kept), "≥", limits and decimal(limits.min_gain_kept)),
        decimal(parity.same_answers, 2),
        decimal(parity.first_divergence, 1),
    ]


def _gain(data: DecoderData) -> str:
    """What fine-tuning did to the loss, which variants are to keep."""
    before, after = data.manifest.reference.get("base_loss"), tuned_loss(data.manifest)
    if before is None or after is None or not finite(before) or not finite(after) or before <= 0:
        return ""
    change = f"{(after - before) / before:+.1%}".replace("-", MINUS)
    said = (
        f"Fine-tuning took the evaluation loss from {decimal(before)} to {decimal(after)} nats a "
        f"token ({change})"
    )
    if after >= before:
        return f"{said}: it gained nothing that a variant could lose."
    if data.manifest.original:
        said += f", the smaller model's is {decimal(data.manifest.reference.get('loss'))}"
    return f"{said}; the gain kept is the share of that way that a variant still goes."


def _speeds(data: DecoderData) -> list[Block]:
    measured = [(v, v.measured) for v in data.manifest.variants if v.measured]
    if not measured:
        return []
    head = ("variant", "first token ms", "prompt tokens/s", "answer tokens/s", "memory MB")
    rows = tuple(row(v.name, *_speed(m)) for v, m in measured)
    threads = {m.threads for _, m in measured if m.threads}
    caption = "Measured on the machine that compiled"
    caption += f", with {plural(threads.pop(), 'thread')}" if len(threads) == 1 else ""
    caption += (
        ": time to the first token after a prompt of median length, a long prompt, and one answer."
    )
    return [Table(head, rows, caption=caption)]


def _speed(m: Measured) -> list[str]:
    return [
        three_digits(m.first_token_ms),
        count(m.prompt_tokens_per_s),
        three_digits(m.answer_tokens_per_s),
        megabytes(m.memory_bytes),
    ]


def _plots(data: DecoderData) -> list[Block]:
    """Size against closeness and against what is left of the fine-tuning."""
    figures: list[Figure] = []
    for key, name, says in (
        ("kl_divergence", "mean KL divergence, nats", "down and left is better"),
        ("gain_kept", "gain kept", "up and left is better"),
    ):
        points = [
            Point(v.name, size, value)
            for v in data.manifest.variants
            if (size := variant_size(v)) is not None
            and v.parity is not None
            and (value := getattr(v.parity, key)) is not None
            and finite(value)
        ]
        if points:
            floor = 0.0 if key == "kl_divergence" else float("-inf")
            svg = size_plot(points, name, None, least_pad=0.001, floor=floor)
            figures.append(Figure(svg, f"Size against {name}: {says}."))
    return [Figures(tuple(figures))] if figures else []


def _data(data: DecoderData) -> Section:
    """What the data are, and what was noticed in reading them."""
    report = data.data
    facts = [("rows are", KINDS[report.kind])]
    facts += [("training rows", count(report.n_train)), ("evaluation rows", count(report.n_eval))]
    facts.append(("left out of the evaluation", f"{count(report.n_overlap)} that stand in both"))
    facts.append(("columns", ", ".join(report.columns)))
    facts += _training_rows(data.training)
    blocks: list[Block] = [Facts(tuple(facts))]
    notes = tuple(dict.fromkeys([*data.notes, *report.notes]))
    blocks += [Items(notes)] if notes else []
    if report.overlap_examples:
        rows = tuple(
            row(
                shorten(o.text, TEXT_SHOWN),
                f"{file_name(o.eval_path)}, row {o.eval_row}",
                f"{file_name(o.train_path)}, row {o.train_row}",
            )
            for o in report.overlap_examples
        )
        table = Table(("asked", "evaluation", "training"), rows, n_text=3)
        blocks.append(Details("Rows that ask what is asked in the training data", (table,)))
    return Section("data", "Data", tuple(blocks))


def _training_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of the training rows."""
    if "n_tokens" not in info:
        return []
    learned = f"{count(info['n_tokens'])}, of which {count(info.get('n_targets'))} are learned"
    facts = [("training tokens", learned)]
    facts.append(("training rows truncated", count(info.get("n_truncated"))))
    facts.append(("training rows dropped", count(info.get("n_dropped"))))
    if info.get("is_packed"):
        facts.append(("packed into", f"{plural(info.get('rows', 0), 'sequence')}"))
    return facts
