"""edgelm.load(…).predict(…) on both engines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS

import edgelm
from edgelm.compiler.nasty import NASTY

VARIANTS = ("onnx-fp32", "gguf-f16")


def some_texts(n: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(n)]


TEXTS = [*some_texts(24), *NASTY]


@pytest.fixture(scope="module", params=VARIANTS)
def model(classifier: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.Model]:
    with edgelm.load(classifier, variant=request.param, threads=1) as opened:
        yield opened


def close_to(answers: list[Any], others: list[Any], tolerance: float) -> None:
    """Equal labels, and scores within `tolerance`."""
    assert len(answers) == len(others)
    for a, b in zip(answers, others, strict=True):
        assert a.label == b.label or abs(a.score - b.score) < tolerance
        assert abs(a.score - b.score) < tolerance
        assert a.truncated == b.truncated


def test_a_list_is_answered_in_its_order_as_one_by_one(model: edgelm.Model) -> None:
    together = model.predict(TEXTS)
    close_to(together, [model.predict(text) for text in TEXTS], 1e-3)
    assert len({round(a.score, 4) for a in together}) > len(TEXTS) / 2  # else order is not seen
    close_to(model.predict(TEXTS[::-1])[::-1], together, 1e-3)


def test_single_and_empty(model: edgelm.Model) -> None:
    answer = model.predict("i lost my card")
    assert isinstance(answer, edgelm.Classification)
    assert answer.label in model.labels == ("card_lost", "refund", "other")
    assert 1 / 3 <= answer.score <= 1
    assert answer.scores is None
    assert model.predict([]) == []


def test_the_engines_agree(classifier: Path) -> None:
    answers = []
    for variant in VARIANTS:
        with edgelm.load(classifier, variant=variant, threads=1) as model:
            answers.append(model.predict(TEXTS))
    close_to(*answers, tolerance=5e-3)  # f16 weights


def test_all_scores(model: edgelm.Model) -> None:
    for answer in model.predict(TEXTS, all_scores=True):
        assert isinstance(answer, edgelm.Classification)
        assert answer.scores is not None
        assert list(answer.scores) == list(model.labels)
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert answer.score == max(answer.scores.values()) == answer.scores[answer.label]


def test_long_texts(model: edgelm.Model) -> None:
    limit = model.manifest.text.max_tokens
    fits, long = " ".join(["card"] * (limit - 2)), " ".join(["card"] * (limit - 1))
    assert [a.truncated for a in model.predict([fits, long])] == [False, True]
    assert model.predict(long).score == pytest.approx(model.predict(fits).score, abs=1e-3)
    assert model.predict([fits], on_long="error")[0].truncated is False
    with pytest.raises(edgelm.InputError, match=f"text 1 is longer than {limit} tokens"):
        model.predict([fits, long], on_long="error")
    with pytest.raises(edgelm.UsageError, match="on_long: 'cut'"):
        model.predict(fits, on_long="cut")  # type: ignore[call-overload]


NO_TEXT = [
    (3, "text 0: int"),
    (None, "text 0: NoneType"),
    (b"bytes", "a text is needed"),
    (["fine", None], "text 1: NoneType"),
    (["fine", ["nested"]], "text 1: list"),
    (("a", "pair"), "text 0: tuple"),
    ([("a", "pair")], "text 0: tuple"),
    ({"a": 1}, "a text is needed"),
    ("half \ud83d", "text 0: holds a lone surrogate"),
]


@pytest.mark.parametrize(("value", "says"), NO_TEXT, ids=range(len(NO_TEXT)))
def test_what_is_no_text_is_refused(model: edgelm.Model, value: Any, says: str) -> None:
    with pytest.raises(edgelm.InputError, match=says):
        model.predict(value)


def test_sequences_other_than_lists(model: edgelm.Model) -> None:
    texts = np.array(TEXTS[:3])
    close_to(model.predict(texts), model.predict(TEXTS[:3]), 1e-3)  # type: ignore[call-overload]


def test_eight_threads_answer_as_one(model: edgelm.Model) -> None:
    expected = model.predict(TEXTS)

    def ask(seed: int) -> list[Any]:
        order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
        found = model.predict([TEXTS[i] for i in order])
        back = dict(zip(order, found, strict=True))
        return [back[i] for i in range(len(TEXTS))]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(ask, range(16)):
            close_to(answers, expected, 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_closing(classifier: Path, variant: str) -> None:
    with edgelm.load(classifier, variant=variant, threads=1) as model:
        assert model.predict("hello")
    model.close()
    model.close()
    with pytest.raises(edgelm.UsageError, match="the model is closed"):
        model.predict("hello")


def test_what_load_refuses(classifier: Path, tmp_path: Path) -> None:
    load = edgelm.load
    with pytest.raises(edgelm.UnknownVariant, match=r"did you mean 'onnx-fp32'\?"):
        load(classifier, variant="onnx-fp64")
    with pytest.raises(edgelm.UsageError, match="device: 'tpu' is none of auto, cpu, cuda"):
        load(classifier, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(edgelm.UsageError, match="threads: 0"):
        load(classifier, threads=0)
    with pytest.raises(edgelm.BundleNotFound, match="no such bundle"):
        load(tmp_path / "missing.edgelm")
    with pytest.raises(edgelm.BundleNotFound, match="not a bundle"):
        load(classifier / "edgelm.json")


def test_a_device_that_is_not_there(classifier: Path) -> None:
    from edgelm.targets import get_target

    if any("cuda" in get_target(t).capabilities().devices for t in ("onnx", "gguf")):
        pytest.skip("an engine here was built for CUDA")
    with pytest.raises(edgelm.TargetUnavailable, match="no cuda device"):
        edgelm.load(classifier, device="cuda")


def test_loading_takes_the_fastest_measured_variant(classifier: Path) -> None:
    with edgelm.load(str(classifier), threads=1) as model:
        speeds = [(v.measured and v.measured.texts_per_s) or 0 for v in model.manifest.variants]
        chosen = model.variant.measured
        assert chosen is not None
        assert chosen.texts_per_s == max(speeds) > 0
        assert model.device == "cpu"


def test_embeddings_have_length_one_and_are_equal_on_both_engines(embedder: Path) -> None:
    rows = []
    for variant in ("onnx-fp32", "gguf-f32"):
        with edgelm.load(embedder, variant=variant, threads=1) as model:
            assert model.labels == ()
            answers = model.predict(TEXTS)
            rows.append(np.stack([a.vector for a in answers]))
            np.testing.assert_allclose(model.predict(TEXTS[0]).vector, rows[-1][0], atol=1e-4)
    assert rows[0].shape == (len(TEXTS), 32)
    np.testing.assert_allclose(np.linalg.norm(rows[0], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)
