"""What the page says of classification and embeddings."""

from __future__ import annotations

from edgelm.compiler.report import sections
from edgelm.compiler.report.blocks import (
    Block,
    CardParts,
    Details,
    Facts,
    Figure,
    Figures,
    Items,
    Section,
    Table,
    row,
)
from edgelm.compiler.report.comparison import comparison, variant_size
from edgelm.compiler.report.data import EncoderData
from edgelm.compiler.report.encoder_card import card_parts
from edgelm.compiler.report.heatmap import label_bars, label_ranks
from edgelm.compiler.report.quality import quality
from edgelm.compiler.report.sections import TEXT_SHOWN
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    file_name,
    finite,
    megabytes,
    one_line,
    plural,
    shorten,
    three_digits,
)
from edgelm.runtime.manifest import Variant
from edgelm.runtime.metrics import main_metric

MAX_BARS = 30


class EncoderKind:
    """Labels, label sets, vectors."""

    def __init__(self, data: EncoderData) -> None:
        self._data = data

    def does(self) -> str:
        """`gives a text one of 26 labels`."""
        task = self._data.manifest.task
        what = "a pair of texts" if task.pair else "a text"
        if task.kind == "feature-extraction":
            size = f" of {task.dimensions} dimensions" if task.dimensions else ""
            form = ", scaled to length one" if task.normalize else ""
            return f"turns {what} into a vector{size} ({task.pooling} pooling{form})"
        n_labels = plural(len(task.labels), "label")
        if task.problem == "multi_label":
            least = decimal(task.threshold, 2)
            return f"gives {what} any of {n_labels} (from {least} probability)"
        return f"gives {what} one of {n_labels}"

    def length(self) -> str:
        """Texts are cut."""
        return f"Texts over {self._data.manifest.text.max_tokens} tokens are truncated."

    def facts(self, variant: Variant) -> list[str]:
        """Size, time, metric, closeness."""
        manifest, parity, measured = self._data.manifest, variant.parity, variant.measured
        metric = main_metric(manifest.task)
        facts: list[str] = []
        if (size := variant_size(variant)) is not None:
            facts.append(f"{megabytes(size)} MB")
        if measured and finite(measured.latency_ms_p50):
            n = measured.latency_batch
            call = "a text" if n == 1 else f"for {n} texts at once"
            facts.append(f"{three_digits(measured.latency_ms_p50)} ms {call}")
        if metric in variant.metrics:
            text = f"{metric} {decimal(variant.metrics[metric])}"
            if metric in manifest.reference:
                text += f" (reference {decimal(manifest.reference[metric])})"
            facts.append(text)
        if parity and parity.agreement is not None:
            differ = round((1 - parity.agreement) * parity.n) if finite(parity.agreement) else DASH
            facts.append(f"{differ} of {plural(parity.n, 'text')} answered unlike the reference")
        if parity and parity.mean_cosine is not None:
            facts.append(f"mean cosine {decimal(parity.mean_cosine)}")
        return facts

    def sections(self) -> list[Section]:
        """Variants, quality, worst examples, training, data."""
        data = self._data
        classifies = data.manifest.task.kind == "text-classification"
        unit = "KL divergence, nats" if classifies else "1 − cosine"
        intro = "The evaluation texts on which each variant is farthest from the reference"
        intro += ", texts with another label first." if classifies else "."
        return [
            comparison(data),
            quality(data),
            sections.worst_examples(data, intro, ("text", "reference", "variant", unit)),
            sections.training(data),
            data_facts(data),
        ]

    def card(self) -> CardParts:
        """The card's words."""
        return card_parts(self._data)


def data_facts(data: EncoderData) -> Section:
    """What the data are, and what was noticed in reading them."""
    report = data.data
    columns = report.columns
    used = [("text", columns.text), ("second text", columns.pair), ("label", columns.label)]
    used += [("score", columns.score)]
    facts = [("training texts", count(report.n_train)), ("evaluation texts", count(report.n_eval))]
    facts.append(("left out of the evaluation", f"{count(report.n_overlap)} that stand in both"))
    facts.append(("columns", ", ".join(f"{what}: {name}" for what, name in used if name)))
    blocks: list[Block] = [Facts(tuple(facts))]
    notes = tuple(dict.fromkeys([*data.notes, *report.notes]))
    blocks += [Items(notes)] if notes else []
    blocks += _label_counts(data)
    if report.overlap_examples:
        rows = tuple(
            row(
                shorten(o.text, TEXT_SHOWN),
                f"{file_name(o.eval_path)}, row {o.eval_row}",
                f"{file_name(o.train_path)}, row {o.train_row}",
            )
            for o in report.overlap_examples
        )
        table = Table(("text", "evaluation", "training"), rows, n_text=3)
        blocks.append(Details("Texts that stand on both sides", (table,)))
    return Section("data", "Data", tuple(blocks))


def _label_counts(data: EncoderData) -> list[Block]:
    counts = sorted(data.data.label_counts.items(), key=lambda item: -item[1])
    if not counts:
        return []
    of = "evaluation" if _counts_are_of_eval(data) else "training"
    few, many = counts[-1], counts[0]
    caption = (
        f"Texts of the {of} data by label: {count(few[1])} ({shorten(one_line(few[0]), 60)}) to "
        f"{count(many[1])} ({shorten(one_line(many[0]), 60)})."
    )
    if len(counts) <= MAX_BARS:
        return [Figures((Figure(label_bars(counts), caption, wide=True),))]
    rows = tuple(row(label, count(n)) for label, n in counts)
    return [
        Figures((Figure(label_ranks(counts), caption),)),
        Details("Texts of every label", (Table(("label", "texts"), rows),)),
    ]


def _counts_are_of_eval(data: EncoderData) -> bool:
    """DataReport.label_counts are the evaluation's where the training texts have no labels."""
    if data.truth is None or data.data.n_train == 0:
        return True
    sums = data.truth.sum(axis=0).tolist()
    return [data.data.label_counts.get(x) for x in data.manifest.task.labels] == sums
