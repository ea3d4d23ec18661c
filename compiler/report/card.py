"""card.md: what the bundle answers, how to use it, how good it is and how far that holds."""

from __future__ import annotations

import json
import re
import shlex

from edgelm.compiler.report.comparison import drop, n_compared, variant_size
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.stats import calibration_error, reliability
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    megabytes,
    one_line,
    plural,
    shorten,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Manifest, Variant
from edgelm.runtime.metrics import main_metric

LABELS_SHOWN = 40
NOTES_SHOWN = 8

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


def render_card(data: ReportData) -> str:
    """The card in Markdown; texts of users are escaped and stay in their line."""
    manifest = data.manifest
    parts = [
        f"# {markdown(manifest.name)} {markdown(manifest.version)}",
        _answers(manifest),
        "## Use",
        _python(manifest),
        _shell(manifest),
        "## Variants",
        _variants(data),
        "## Data and training",
        *_data(data),
        *_training(data),
        "## Limits of use",
        _limits(data),
        "## How it was verified",
        _verified(data),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def markdown(text: str) -> str:
    """The text as it is, with nothing that Markdown or HTML would read in it."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


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


def _python(manifest: Manifest) -> str:
    task = manifest.task
    text = '("a text", "another text")' if task.pair else '"a text"'
    if task.kind == "feature-extraction":
        use = f"vector = model.predict({text}).vector"
    elif task.problem == "multi_label":
        use = f"answer = model.predict({text})\nprint(answer.labels, answer.label_scores)"
    else:
        use = f"answer = model.predict({text})\nprint(answer.label, answer.score)"
    path = json.dumps(_path(manifest), ensure_ascii=False)
    return f"```python\nimport edgelm\n\nmodel = edgelm.load({path})\n{use}\n```"


def _shell(manifest: Manifest) -> str:
    path = shlex.quote(_path(manifest))
    texts = '"a text" "another text"' if manifest.task.pair else '"a text"'
    targets = sorted({v.target for v in manifest.variants})
    lines = [f'pip install "edgelm[{",".join(targets)}]"'] if targets else []
    lines += [
        f"edgelm predict {path} {texts}",
        f"edgelm verify {path}     # checks files and answers on this device",
    ]
    return "```sh\n" + "\n".join(lines) + "\n```"


def _path(manifest: Manifest) -> str:
    # a fence of backticks must not be closed from inside
    return f"{one_line(manifest.name).replace('`', '')}.edgelm"


def _variants(data: ReportData) -> str:
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
    rule = ["---"] + ["---:"] * (len(head) - 1)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
    return (
        f"{table}\n\nThe reference is the Hugging Face model. Times are of one text of median "
        "length, on the machine that compiled. `report.html` shows more."
    )


def _variant(data: ReportData, v: Variant, has_metric: bool, classifies: bool) -> list[str]:
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


def _data(data: ReportData) -> list[str]:
    report = data.data
    text = (
        f"{plural(report.n_train, 'training text')}, {plural(report.n_eval, 'evaluation text')}; "
        f"{plural(report.n_overlap, 'evaluation text')} left out for being in both."
    )
    notes = list(dict.fromkeys([*data.notes, *report.notes]))
    lines = [f"- {markdown(shorten(one_line(n), 300))}" for n in notes[:NOTES_SHOWN]]
    if len(notes) > NOTES_SHOWN:
        lines.append(f"- {plural(len(notes) - NOTES_SHOWN, 'more note')} in `report.html`")
    return [text, "\n".join(lines)]


def _training(data: ReportData) -> list[str]:
    info = data.training
    if info.get("method", "none") == "none":
        return ["The model was compiled as it came, without training."]
    epochs = len(info.get("epochs") or [])
    text = f"Trained with {markdown(str(info['method']))}"
    text += f" for {plural(epochs, 'epoch')}" if epochs else ""
    text += f" in {three_digits(info.get('seconds'))} s: {count(info.get('trained_parameters'))}"
    return [f"{text} parameters, {markdown(str(info.get('precision', DASH)))} arithmetic."]


def _limits(data: ReportData) -> str:
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
    items.append("Latency and memory differ on other machines: `edgelm bench` measures them there.")
    return "\n".join(f"- {item}" for item in items)


def _calibration(data: ReportData) -> list[str]:
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


def _verified(data: ReportData) -> str:
    manifest = data.manifest
    merge = data.training.get("merge")
    skipped = [markdown(v.name) for v in manifest.variants if v.parity is None]
    items = [
        "The bundle's tokenizer gives the same token ids as the Hugging Face tokenizer on all "
        "evaluation texts and on a list of awkward ones.",
        f"Each variant was run by its own engine on {plural(n_compared(data), 'text')} and "
        "compared with the Hugging Face model in float32; a variant over its limits does not enter "
        "a bundle.",
    ]
    if skipped:
        items.append(f"Not compared: {', '.join(skipped)}.")
    if merge:
        items.append(
            "The merged weights answer as the trained model did: logits differ by at most "
            f"{small(merge.get('max_abs_diff'))} on {plural(merge.get('n', 0), 'text')}."
        )
    if manifest.golden:
        items.append(
            f"{plural(len(manifest.golden), 'golden text')} with each variant's answers are in "
            "`edgelm.json`; `edgelm verify` runs them again on the device and checks all digests."
        )
    return "\n".join(f"- {item}" for item in items)
