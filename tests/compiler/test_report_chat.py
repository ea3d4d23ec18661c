"""Report and card of generation, from data made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from pages import HOSTILE, Page

from edgelm.compiler.chat.data import ChatReport
from edgelm.compiler.context import Worst
from edgelm.compiler.limits import TOKENS_FOUR
from edgelm.compiler.report import DecoderData, render_card, render_report
from edgelm.compiler.split import Overlap
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
from edgelm.runtime.table import variants_table

LABEL_WORDS = ("label", "cosine", "classif", "texts/s", "accuracy", "vector", "embedding", "F1")
SPECS = (("gguf", "q8_0", 0.004, 144_800_000), ("gguf", "q4_0", 0.1755, 91_700_000))


def chat(
    names: tuple[str, ...] = ("gguf-q8_0", "gguf-q4_0"), said: str = "my parcel"
) -> DecoderData:
    variants: list[Variant] = []
    for i, (name, (target, precision, kl, size)) in enumerate(zip(names, SPECS, strict=True)):
        parity = Parity(
            2048, 1.5, agreement=0.98 - kl, kl_divergence=kl, kl_p999=20 * kl,
            perplexity_ratio=1 + kl, same_answers=0.62, first_divergence=11.5, gain_kept=1 - kl,
        )  # fmt: skip
        measured = Measured(
            size, first_token_ms=31.25, prompt_tokens_per_s=1234.0, answer_tokens_per_s=87.5,
            memory_bytes=2 * size, threads=2,
        )  # fmt: skip
        file = FileEntry(f"variants/v{i}/model.gguf", f"{i}" * 64, size)
        metrics = {"loss": 1.25 + kl, "perplexity": 3.49}
        variants.append(
            Variant(
                name, target, precision, (file,), parity=parity, metrics=metrics, measured=measured
            )
        )
    manifest = Manifest(
        format=FORMAT, name="helper", version="1.0.0", release=1,
        task=Task("text-generation", chat=True), text=TextLimits(2048), files=(),
        variants=tuple(variants),
        reference={"loss": 1.25, "perplexity": 3.4903, "base_loss": 2.5},
        golden=(GoldenText("a"), GoldenText("b")),
    )  # fmt: skip
    report = ChatReport(
        "messages", ("messages",), 900, 100, 3,
        (Overlap(said, "/home/me/eval.jsonl", 3, "/home/me/train.jsonl", 7),),
        ("2 of 900 training rows are longer than 2048 tokens and truncated",),
    )  # fmt: skip
    worst = Worst(said, "It is on its way.", "It has been sent back.", 2, "apart at token")
    return DecoderData(
        manifest=manifest,
        recipe_yaml="model: tiny\n",
        training={
            "method": "lora", "seconds": 61.4, "precision": "bf16", "trained_parameters": 345_678,
            "epochs": [{"epoch": e, "loss": 2 * 0.7**e, "eval_loss": 1.2 + 0.6**e} for e in (1, 2)],
            "n_tokens": 90_000, "n_targets": 30_000, "n_truncated": 2, "n_dropped": 1, "rows": 44,
            "is_packed": True, "merge": {"max_abs_diff": 3.1e-6, "scale": 21.2, "n": 32},
        },
        notes=(),
        worst={v.name: (worst,) for v in variants},
        limits={v.name: TOKENS_FOUR for v in variants},
        data=report,
        n_parameters=134_515_008,
        n_texts=64,
        n_targets=5000,
        n_answers=50,
    )  # fmt: skip


def plain() -> DecoderData:
    """A model that was not trained and knows no chat; nothing measured, one number broken."""
    data = chat()
    broken = [
        replace(data.manifest.variants[0], parity=None, metrics={}, measured=None),
        replace(
            data.manifest.variants[1],
            parity=Parity(4, float("nan"), agreement=float("nan"), kl_divergence=float("inf")),
            measured=Measured(5),
        ),
    ]  # fmt: skip
    manifest = replace(
        data.manifest, task=Task("text-generation"), variants=tuple(broken),
        reference={"loss": 3.0, "perplexity": 20.0}, golden=(),
    )  # fmt: skip
    return replace(
        data, manifest=manifest, training={"method": "none"}, worst={}, limits={},
        data=replace(data.data, kind="text"),
    )  # fmt: skip


def hostile() -> DecoderData:
    return chat((HOSTILE[0], HOSTILE[5]), said=HOSTILE[5])


@pytest.mark.parametrize("case", [chat, plain, hostile])
def test_page_is_whole_and_says_nothing_of_labels(case) -> None:
    text = render_report(case())
    page = Page(text)
    assert not {"script", "img", "link"} & set(page.tags)
    assert render_report(case()) == text
    for word in LABEL_WORDS:
        assert word not in page.text, word
        assert word not in render_card(case()), word
    for drawing in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        for element in ElementTree.fromstring(drawing).iter():
            for name, value in element.attrib.items():
                assert name == "aria-label" or not re.search(r"\b(nan|inf)\b", value)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert not any(re.search(r"\b(nan|inf|None)\b", c, re.IGNORECASE) for c in cells)


def test_page_holds_the_numbers() -> None:
    page = Page(render_report(chat()))
    for expected in (
        "It answers conversations. Prompt and answer together have up to 2,048 tokens.",
        "144.8", "8.61", "5.45",  # MB; bits a weight
        "0.1755", "3.5100", "0.8245", "≤ 0.3500", "≥ 0.9000", "0.62", "11.5", "31.2", "1,234",
        "87.5", "2 threads", "5,000 tokens of 64 texts", "2,048 of these", "50 greedy answers",
        "Fine-tuning took the evaluation loss from 2.5000 to 1.2500 nats a token (−50.0%)",
        "mean KL divergence 0.1755 nats",
        "99.6% of the fine-tuning's gain kept", "It has been sent back.", "apart at token",
        "Size against mean KL divergence", "Loss by epoch", "conversations", "345,678",
        "are longer than 2048 tokens", "eval.jsonl, row 3",
        "90,000, of which 30,000 are learned", "44 sequences",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "/home/me" not in page.text


def test_card_of_a_chat_and_of_a_plain_model() -> None:
    card = render_card(chat())
    for expected in (
        "# helper 1.0.0", 'edgelm.load("helper.edgelm")', "model.stream(messages",
        'edgelm predict helper.edgelm "a question"', 'pip install "edgelm[gguf]"',
        "Prompt and answer together have up to 2,048 tokens", "50 prompts", "900 training rows",
        "from 2.5000 to 1.2500", "2 golden texts",
    ):  # fmt: skip
        assert expected in card, expected
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 1 + 2
    assert {line.count("|") for line in table} == {11}
    card = render_card(plain())
    assert "Continues a text." in card
    assert "messages" not in card
    assert "Fine-tuning" not in card
    assert "nan" not in card.lower()
    escaped = re.sub(r"```.*?```", "", render_card(hostile()), flags=re.DOTALL)
    assert "<script" not in escaped


def test_table_of_a_terminal() -> None:
    head, _, reference, first, second = variants_table(chat().manifest).splitlines()
    assert head.split("  ")[0] == "variant"
    assert "answer tok/s" in head
    assert reference.split()[3] == "3.490"
    assert first.split() == [
        "gguf-q8_0", "144.80", "3.490", "0.0040", "0.9760", "0.996", "31.2", "1234", "87.5", "290"
    ]  # fmt: skip
    assert "0.1755" in second
