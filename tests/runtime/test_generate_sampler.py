"""Sampling against Hugging Face's own processors, which `generate` runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgelm.runtime.errors import UsageError
from edgelm.runtime.generate.options import GenerateOptions
from edgelm.runtime.generate.sampler import Sampler, logprobs

V = 24


def expected(logits: np.ndarray, prompt: list[int], **options: Any) -> np.ndarray:
    """Probabilities (V,) by transformers."""
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    makers: list[tuple[str, Any]] = [
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ]
    chain = LogitsProcessorList([make(options[n]) for n, make in makers if n in options])
    scores = chain(torch.tensor([prompt]), torch.tensor(logits[None]))  # type: ignore[arg-type]
    return torch.softmax(scores[0], -1).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 9, "top_p": 0.8},
        {"temperature": 1.2, "min_p": 0.2},
        {"temperature": 1.2, "repetition_penalty": 1.6, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_tokens_are_drawn_as_hugging_face_draws_them(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(1).normal(0, 2, V).astype(np.float32)
    prompt = [int(logits.argmax()), 3, 3, 5]
    wanted = expected(logits, prompt, **options)
    n = 6000
    found = np.zeros(V)
    for seed in range(n):
        found[Sampler(GenerateOptions.of(seed=seed, **options), prompt).pick(logits)] += 1
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(wanted))
    # four standard deviations of a count, and a bit where it is small
    assert (np.abs(found / n - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / n) + 2 / n).all()


def test_the_likeliest_token_needs_no_draw() -> None:
    logits = np.random.default_rng(2).normal(0, 2, V).astype(np.float32)
    for options in ({}, {"temperature": 2.0, "top_k": 1}, {"temperature": 1e-6, "seed": 1}):
        assert Sampler(GenerateOptions.of(**options), []).pick(logits) == logits.argmax()


def test_a_penalty_counts_the_answer_too_and_leaves_the_logits() -> None:
    logits = np.array([2.0, 1.9, 1.8, -1.0], np.float32)
    before = logits.copy()
    sampler = Sampler(GenerateOptions.of(repetition_penalty=1.2), [])
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 2]
    np.testing.assert_array_equal(logits, before)


def test_a_seed_decides_the_draws() -> None:
    logits = np.random.default_rng(3).normal(0, 1, V).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(GenerateOptions.of(temperature=1.0, seed=seed), [])
        return [sampler.pick(logits) for _ in range(20)]

    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_logprobs_are_of_the_model_itself() -> None:
    logits = np.random.default_rng(4).normal(0, 2, V).astype(np.float32)
    values = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    own, *best = logprobs(logits, 3, 4)
    assert own.token_id == 3 and own.logprob == pytest.approx(values[3], abs=1e-5)
    assert [t.token_id for t in best] == np.argsort(-logits)[:4].tolist()
    assert len(logprobs(logits, 3, 0)) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1}, "temperature: -1"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0}, "top_p: 0"),
        ({"top_k": 1.5}, "top_k: 1.5"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"stop": ["a", ""]}, "stop"),
        ({"seed": True}, "seed: True"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0"),
        ({"max_token": 3}, "unknown option 'max_token' .did you mean 'max_tokens'"),
        ({"on_long": "cut"}, "on_long: 'cut'"),
    ],
)
def test_options_outside_their_rule(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        GenerateOptions.of(**options)
