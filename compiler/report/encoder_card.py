"""What the card says of classification and embeddings."""

from __future__ import annotations

from edgelm.compiler.report.blocks import CardParts
from edgelm.compiler.report.comparison import drop, n_compared, variant_size
from edgelm.compiler.report.data import EncoderData
from edgelm.compiler.report.stats import calibration_error, reliability
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    markdown,
    markdown_table,
    megabytes,
    one_line,
    plural,
    shorten,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Manifest, Task, Variant
from edgelm.runtime.metrics import main_metric

LABELS_SHOWN = 40


def card_parts(data: EncoderData) -> CardParts:
    """In Markdown."""
    task, report = data.manifest.task, data.data
    return CardParts(
        answers=_answers(data.manifest),
        python=_python(task),
        shell='"a text" "another text"' if task.pair else '"a text"',
        variants=_variants(data),
        data=f"{plural(report.n_train, 'training text')}, "
        f"{plural(report.n_eval, 'evaluation text')}; "
        f"{plural(report.n_overlap, 'evaluation text')} left out for being in both.",
        notes=report.notes,
        limits=_limits(data),
        verified=[
            "The bundle's tokenizer gives the same token ids as the Hugging Face tokenizer on all "
            "evaluation texts and on a list of awkward ones.",
            f"Each variant was run by its own engine on {plural(n_compared(data), 'text')} and "
            "compared with the Hugging Face model in float32; a variant over its limits does not "
            "enter a bundle.",
        ],
    )


def _answers(manifest: Manifest) -> str:
    task = manifest.task
    what = "a pair of texts" if task.pair else "a text"
    if task.kind == "feature-extraction":
        size = f" of {task.dimensions} numbers" if task.dimensions else ""
        length = ", scaled to length one" if task.normalize else ""
        return (
            f"Turns {what} into a vector{size} ({task.pooling} pooling{length}). Texts of similar "
            "meaning get vectors of high cosine similarity."
        )
    shown = ", ".join(markdown(shorten(one_line(x), 60)) for x in task.labels[:LABELS_SHOWN])
    if len(task.labels) > LABELS_SHOWN:
        shown += f" and {len(task.labels) - LABELS_SHOWN} more, listed in `edgelm.json`"
    how = f"Gives {what} exactly one of {plural(len(task.labels), 'label')}, with its probability"
    if task.problem == "multi_label":
        how = (
            f"Gives {what} any number of {plural(len(task.labels), 'label')}: those whose "
            f"probability is at least {task.threshold:g}"
        )
    return f"{how}.\n\nLabels: {shown}."


def _python(task: Task) -> str:
    text = '("a text", "another text")' if task.pair else '"a text"'
    if task.kind == "feature-extraction":
        return f"vector = model.predict({text}).vector"
    if task.problem == "multi_label":
        return f"answer = model.predict({text})\nprint(answer.labels, answer.label_scores)"
    return f"answer = model.predict({text})\nprint(answer.label, answer.score)"


def _variants(data: EncoderData) -> str:
    manifest = data.manifest
    classifies = manifest.task.kind == "text-classification"
    metric = main_metric(manifest.task)
    has_metric = metric in manifest.reference
    head = ["variant", "size, MB"]
    head += [markdown(metric), "drop"] if has_metric else []
    head += ["agreement", "KL, nats"] if classifies else ["mean cosine", "least cosine"]
    head += ["p50, ms", "p95, ms", "texts/s", "memory, MB"]
    reference = ["reference, fp32", DASH]
    reference += [decimal(manifest.reference[metric]), DASH] if has_metric else []
    rows = [[*reference, *[DASH] * (len(head) - len(reference))]]
    rows += [_variant(data, v, has_metric, classifies) for v in manifest.variants]
    return (
        f"{markdown_table(head, rows)}\n\nThe reference is the Hugging Face model. Times are of "
        "one text of median length, on the machine that compiled. `report.html` shows more."
    )


def _variant(data: EncoderData, v: Variant, has_metric: bool, classifies: bool) -> list[str]:
    cells = [markdown(v.name), megabytes(variant_size(v))]
    if has_metric:
        cells += [decimal(v.metrics.get(main_metric(data.manifest.task))), decimal(drop(data, v))]
    p, m = v.parity, v.measured
    if classifies:
        cells += [decimal(p and p.agreement), small(p and p.kl_divergence)]
    else:
        cells += [decimal(p and p.mean_cosine), decimal(p and p.min_cosine)]
    cells += [three_digits(m and m.latency_ms_p50), three_digits(m and m.latency_ms_p95)]
    return [*cells, count(m and m.texts_per_s), megabytes(m and m.memory_bytes)]


def _limits(data: EncoderData) -> list[str]:
    manifest = data.manifest
    task = manifest.task
    items = [
        f"A text over {manifest.text.max_tokens} tokens is truncated, and its answer is marked "
        "`truncated`; what stands after that is not read.",
        f"All figures are of {plural(n_compared(data), 'text')} of the evaluation data. They hold "
        "for texts like those: another language, source or style of text needs its own evaluation "
        "(`edgelm eval`). Which languages it answers well is not known beyond that data.",
    ]
    if task.kind == "feature-extraction":
        items.append(
            "Vectors of two variants are close, not equal: make an index and its queries with the "
            "same variant, or measure what mixing them costs."
        )
    elif task.problem == "single_label":
        items.append("It always gives one of its labels, also to a text that fits none of them.")
        items += _calibration(data)
    else:
        items.append("No label, or several, may be given; the threshold is the same for all.")
    return items


def _calibration(data: EncoderData) -> list[str]:
    if data.truth is None:
        return []
    task, truth = data.manifest.task, data.truth
    errors = [calibration_error(reliability(task, truth, o)) for o in data.outputs.values()]
    known = [e for e in errors if e == e]
    if not known:
        return []
    return [
        f"Scores and accuracy are up to {decimal(max(known), 3)} apart (expected calibration "
        "error); choose a threshold for refusing answers on texts of your own."
    ]
