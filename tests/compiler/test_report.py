"""report.html and card.md, from data made by hand: what they say, and that nothing breaks them."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from pages import HOSTILE, Page

from edgelm.compiler.context import Worst
from edgelm.compiler.dataset import DataReport
from edgelm.compiler.limits import Limits
from edgelm.compiler.report import EncoderData, render_card, render_report
from edgelm.compiler.report.stats import (
    best_variant,
    calibration_error,
    confused_pairs,
    confusion,
    label_scores,
    reliability,
    worst_first,
)
from edgelm.compiler.report.svg import Drawing, tick_texts, ticks
from edgelm.compiler.report.text import clean, decimal, file_name, fit, megabytes, small
from edgelm.compiler.split import Overlap
from edgelm.runtime.columns import Columns
from edgelm.runtime.manifest import (
    FORMAT,
    FileEntry,
    GoldenText,
    Manifest,
    Measured,
    Parity,
    Task,
    TextLimits,
    Variant,
)
from edgelm.runtime.metrics import (
    agreement,
    classification_metrics,
    cosine,
    kl_divergence,
    main_metric,
)

SPECS = (("onnx", "fp32", 0.01), ("onnx", "int8", 0.5), ("gguf", "q8_0", 0.2), ("gguf", "q4_0", 1))


def make(
    task: Task,
    truth: NDArray[np.bool_] | None,
    reference: NDArray[np.float32],
    *,
    names: tuple[str, ...] = (),
    worst_text: str = "where is my card",
    seed: int = 0,
) -> EncoderData:
    """Variants are the reference with noise; figures are computed as the compiler does."""
    rng = np.random.default_rng(seed)
    outputs: dict[str, NDArray[np.float32]] = {}
    variants: list[Variant] = []
    for i, (target, precision, noise) in enumerate(SPECS):
        name = names[i] if names else f"{target}-{precision}"
        scale = noise * float(reference.std()) * 0.4
        values = (reference + rng.normal(0, scale, reference.shape)).astype(np.float32)
        outputs[name] = values
        size = (90_123_456, 23_400_000, 24_300_000, 15_000_000)[i]
        variants.append(
            Variant(
                name, target, precision,
                (FileEntry(f"variants/{name}/model.bin", f"{i}" * 64, size),),
                engine={"onnxruntime": "1.22"},
                parity=parity(task, reference, values),
                metrics={} if truth is None else classification_metrics(task, truth, values),
                measured=Measured(size, 6.2 / (i + 1), 7.9 / (i + 1), 812.0 * (i + 1), 2 * size, 2),
            )
        )  # fmt: skip
    labels = task.labels
    counts = {x: int(n) for x, n in zip(labels, rng.integers(4, 90, len(labels)), strict=True)}
    manifest = Manifest(
        format=FORMAT, name="intent", version="1.2.0", release=3, task=task,
        text=TextLimits(max_tokens=64), files=(), variants=tuple(variants),
        reference={} if truth is None else classification_metrics(task, truth, reference),
        golden=(GoldenText("a"), GoldenText("b")),
        provenance={"edgelm": "0.1.0", "model": {"name": "tiny", "sha256": "f" * 64}},
    )  # fmt: skip
    answers = ("card_lost 0.912", "card_stolen 0.487")
    return EncoderData(
        manifest=manifest,
        recipe_yaml="model: tiny\ntargets: [onnx:int8]\n",
        data=DataReport(
            n_train=1234, n_eval=len(reference), n_overlap=2,
            overlap_examples=(
                Overlap(worst_text, "/home/me/eval.csv", 3, "C:\\data\\train.csv", 7),
            ),
            label_counts=counts, notes=("1 label (x) with a single text to train on",),
            columns=Columns("text", None, "intent" if labels else None),
        ),
        training={
            "method": "lora", "seconds": 61.4, "precision": "fp32", "trained_parameters": 345_678,
            "epochs": [
                {"epoch": e, "loss": 3.2 * 0.55**e, "eval_loss": 3.0 * 0.6**e + 0.2,
                 "eval_accuracy": 1 - 0.6**e, "eval_macro_f1": 1 - 0.65**e}
                for e in range(1, 7)
            ],
            "merge": {"max_abs_diff": 3.1e-6, "scale": 11.2, "n": 32},
        },
        notes=("128 of 1362 texts were held out",),
        truth=truth,
        reference=reference,
        outputs=outputs,
        worst={v.name: (Worst(worst_text, *answers, 0.4321),) for v in variants},
        limits={v.name: Limits(0.97, 0.01, 0.03, 0.98) for v in variants},
    )  # fmt: skip


def parity(task: Task, a: NDArray[np.float32], b: NDArray[np.float32]) -> Parity:
    diff = float(np.abs(a - b).max())
    if task.kind == "feature-extraction":
        c = cosine(a, b)
        return Parity(len(a), diff, min_cosine=float(c.min()), mean_cosine=float(c.mean()))
    same, kl = agreement(task, a, b).mean(), kl_divergence(task, a, b).mean()
    return Parity(len(a), diff, agreement=float(same), kl_divergence=float(kl))


def single(labels: tuple[str, ...], n: int = 300, **more: object) -> EncoderData:
    rng = np.random.default_rng(1)
    right = rng.integers(0, len(labels), n)
    logits = rng.normal(0, 1.2, (n, len(labels))).astype(np.float32)
    logits[np.arange(n), right] += 4.2
    truth = np.zeros(logits.shape, bool)
    truth[np.arange(n), right] = True
    return make(Task("text-classification", labels), truth, logits, **more)  # type: ignore[arg-type]


def single_label() -> EncoderData:
    return single(tuple(f"intent_{i:02}" for i in range(12)))


def many_labels() -> EncoderData:
    return single(tuple(f"banking_intent_{i:02}" for i in range(77)), 600)


def too_many_labels() -> EncoderData:
    return single(tuple(f"label {i}" for i in range(450)), 200)


def hostile() -> EncoderData:
    data = single(HOSTILE, names=HOSTILE[:4], worst_text=HOSTILE[5])
    manifest = replace(data.manifest, name=HOSTILE[0], version=HOSTILE[5])
    counts = dict.fromkeys(HOSTILE, 3)
    report = replace(data.data, notes=HOSTILE, label_counts=counts)
    return replace(data, manifest=manifest, data=report, notes=HOSTILE, recipe_yaml=HOSTILE[5])


def multi_label() -> EncoderData:
    labels = ("joy", "anger", "fear", "surprise", "never given")
    rng = np.random.default_rng(2)
    logits = rng.normal(-1, 2, (200, 5)).astype(np.float32)
    truth = (logits + rng.normal(0, 1, logits.shape)) > 0
    truth[:, 4], logits[:, 4] = False, -9
    return make(Task("text-classification", labels, "multi_label"), truth, logits)


def embeddings() -> EncoderData:
    vectors = np.random.default_rng(3).normal(0, 1, (250, 32)).astype(np.float32)
    data = make(Task("feature-extraction", normalize=True, dimensions=32), None, vectors)
    return replace(data, training={"method": "none", "epochs": [], "merge": None})


def nothing_measured() -> EncoderData:
    """Figures missing or not finite, as a variant that failed has them."""
    data = single(("yes", "no"), 40)
    nan = float("nan")
    broken = [
        replace(data.manifest.variants[0], parity=None, metrics={}, measured=None, files=()),
        replace(
            data.manifest.variants[1],
            parity=Parity(40, nan, nan, nan), metrics={"accuracy": nan},
            measured=Measured(5, nan, float("inf"), None, None),
        ),
    ]  # fmt: skip
    values = np.full((40, 2), np.nan, np.float32)
    manifest = replace(data.manifest, variants=tuple(broken), reference={"accuracy": nan})
    return replace(
        data, manifest=manifest, outputs={broken[1].name: values}, worst={}, limits={},
        failures={broken[1].name: ("its outputs hold NaN or infinity",)},
        training={"method": "lora", "epochs": [{"epoch": 1, "loss": nan}]},
    )  # fmt: skip


CASES = (
    single_label,
    many_labels,
    too_many_labels,
    hostile,
    multi_label,
    embeddings,
    nothing_measured,
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {case.__name__: render_report(case()) for case in CASES}


@pytest.mark.parametrize("case", [c.__name__ for c in CASES])
def test_page_is_whole_and_stands_alone(case: str, pages: dict[str, str]) -> None:
    page = Page(pages[case])
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "style")
        assert name != "href" or (value or "").startswith("#")
    assert "http://" not in pages[case]
    assert "https://" not in pages[case]
    assert "url(" not in pages[case]
    assert "@import" not in pages[case]
    pages[case].encode("utf-8")


@pytest.mark.parametrize("case", [c.__name__ for c in CASES])
def test_drawings_are_xml_of_finite_numbers(case: str, pages: dict[str, str]) -> None:
    drawings = re.findall(r"<svg .*?</svg>", pages[case], re.DOTALL)
    assert drawings or case == "nothing_measured"
    for drawing in drawings:
        for element in ElementTree.fromstring(drawing).iter():
            for name, value in element.attrib.items():
                assert name == "aria-label" or not re.search(r"\b(nan|inf)\b", value)


@pytest.mark.parametrize("case", CASES)
def test_equal_data_gives_equal_bytes(case, pages: dict[str, str]) -> None:
    data = case()
    assert render_report(data) == pages[case.__name__]
    assert render_card(data) == render_card(data)


def test_page_holds_the_numbers(pages: dict[str, str]) -> None:
    data, text = single_label(), Page(pages["single_label"]).text
    for variant in data.manifest.variants:
        assert variant.parity and variant.measured
        assert decimal(variant.metrics["accuracy"]) in text
        assert decimal(variant.parity.agreement) in text
        assert small(variant.parity.kl_divergence) in text
        assert megabytes(variant.size_bytes) in text
    for expected in (
        "intent 1.2.0", "one of 12 labels", "64 tokens", "345,678", "lora", "1,234", "812",
        "3.1e-06", "128 of 1362 texts were held out", "f" * 64, "targets: [onnx:int8]",
        "where is my card", "card_stolen 0.487", "0.4321", "onnxruntime ≥ 1.22", "intent_11",
        "eval.csv, row 3", "train.csv, row 7", "≥ 0.9700", "Expected calibration error",
    ):  # fmt: skip
        assert expected in text
    assert "/home/me" not in text
    assert "C:\\data" not in text


def test_verdicts_say_what_failed() -> None:
    data = single_label()
    failed = replace(data, failures={"gguf-q4_0": ("agreement 0.5 is under the limit",)})
    page = render_report(failed)
    assert page.count('class="badge good">verified') == 3
    assert page.count('class="badge bad">over its limits') == 1
    assert "agreement 0.5 is under the limit" in page


def test_missing_figures_are_dashes(pages: dict[str, str]) -> None:
    page = Page(pages["nothing_measured"])
    assert "its outputs hold NaN or infinity" in page.text
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", pages["nothing_measured"])
    assert not any(re.search(r"\b(nan|inf|None)\b", c, re.IGNORECASE) for c in cells)
    assert cells.count("–") > 20
    assert "nan" not in render_card(nothing_measured()).lower()


def test_many_labels_are_folded(pages: dict[str, str]) -> None:
    many, few = pages["many_labels"], pages["single_label"]
    assert "most often confused" in many
    assert "The other 62 labels" in many
    assert "most often confused" not in few
    assert "banking_intent_76" in many
    assert len(many) < 400_000


def test_embeddings_show_cosines_and_no_labels(pages: dict[str, str]) -> None:
    text = Page(pages["embeddings"]).text
    assert "1st percentile" in text
    assert "mean cosine" in text
    assert "without training" in text
    assert "F1" not in text


def test_hostile_texts_are_shown_as_they_are(pages: dict[str, str]) -> None:
    text = Page(pages["hostile"]).text
    for one in HOSTILE:
        assert " ".join(clean(one).split()) in text
    assert "\x00" not in pages["hostile"]


def test_card_of_a_classifier() -> None:
    card = render_card(single_label())
    assert card.startswith("# intent 1.2.0\n")
    for expected in (
        'edgelm.load("intent.edgelm")', "edgelm predict intent.edgelm", "edgelm verify",
        'pip install "edgelm[gguf,onnx]"', "64 tokens", "intent\\_11", "345,678 parameters",
        "300 texts", "2 golden texts", "answer.label",
    ):  # fmt: skip
        assert expected in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 1 + 4
    assert {line.count("|") for line in table} == {11}
    assert len(card.split()) < 900


def test_card_of_each_other_task() -> None:
    assert "answer.labels" in render_card(multi_label())
    assert ").vector" in render_card(embeddings())
    assert "37 more, listed in" in render_card(many_labels())
    data = single_label()
    pair = replace(data.manifest, task=replace(data.manifest.task, pair=True))
    card = render_card(replace(data, manifest=pair))
    assert 'predict(("a text", "another text"))' in card
    assert 'intent.edgelm "a text" "another text"' in card


def test_card_with_hostile_names_keeps_its_form() -> None:
    card = render_card(hostile())
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "<script" not in prose
    assert card.count("```") == 4
    table = [line for line in prose.splitlines() if line.startswith("|")]
    assert len(table) == 7
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    card.encode("utf-8")


def test_confusion_and_label_scores_by_hand() -> None:
    task = Task("text-classification", ("a", "b", "c"))
    right, answered = [0, 0, 0, 1], [0, 1, 1, 1]
    truth = np.eye(3, dtype=bool)[right]
    outputs = np.eye(3, dtype=np.float32)[answered]
    assert confusion(truth, outputs).tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert confused_pairs(confusion(truth, outputs)) == [(0, 1, 2)]
    a, b, c = label_scores(task, truth, outputs)
    assert (a.precision, a.recall, a.f1, a.support) == (1.0, pytest.approx(1 / 3), 0.5, 3)
    assert (b.precision, b.recall, b.f1) == (pytest.approx(1 / 3), 1.0, 0.5)
    assert np.isnan([c.precision, c.recall, c.f1]).all()
    assert [s.label for s in worst_first([c, b, a])] == ["a", "b", "c"]


def test_calibration_by_hand() -> None:
    task = Task("text-classification", ("a", "b"))
    # score 0.75 for all four answers, of which three are right
    outputs = np.tile(np.log(np.float32([0.75, 0.25])), (4, 1))
    bins = reliability(task, np.eye(2, dtype=bool)[[0, 0, 0, 1]], outputs)
    assert [(round(b.confidence, 6), b.accuracy, b.n) for b in bins] == [(0.75, 0.75, 4)]
    assert calibration_error(bins) == pytest.approx(0, abs=1e-6)
    bins = reliability(task, np.eye(2, dtype=bool)[[1, 1, 1, 1]], outputs)
    assert calibration_error(bins) == pytest.approx(0.75)
    assert np.isnan(calibration_error([]))


def test_best_variant_is_by_metric_then_closeness() -> None:
    data = single_label()
    metric = main_metric(data.manifest.task)
    best = best_variant(data)
    assert best is not None
    assert best.metrics[metric] == max(v.metrics[metric] for v in data.manifest.variants)
    assert best_variant(replace(data, outputs={})) is None


def test_ticks_are_round_and_texts_agree() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert tick_texts(ticks(0.935, 0.991)) == ["0.94", "0.96", "0.98"]
    assert tick_texts(ticks(0, 1, 4)) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert tick_texts(ticks(1, 3, 8, whole=True)) == ["1", "2", "3"]
    assert tick_texts([0, 25_000]) == ["0", "25,000"]


def test_text_helpers() -> None:
    assert [decimal(x) for x in (None, float("inf"), -0.00001, -0.5)] == [
        "–",
        "–",
        "0.0000",
        "−0.5000",
    ]
    assert [small(x) for x in (0.0, 0.02, 3e-7)] == ["0.0000", "0.0200", "3.0e-07"]
    assert [megabytes(x) for x in (None, 1_500_000, 90_123_456)] == ["–", "1.50", "90.1"]
    assert [file_name(x) for x in ("/a/b.csv", "C:\\a\\b.csv", "b.csv")] == ["b.csv"] * 3
    assert fit("a long label name", 50, 12).endswith("…")
    drawing = Drawing(10, 10, 'a "title" & <more>')
    drawing.text(1, 2, "<b>\x00", tip="&")
    assert ElementTree.fromstring(drawing.svg())[0].text is None
