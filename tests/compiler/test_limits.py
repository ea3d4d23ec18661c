"""What is over its limit does not pass, and what a recipe says goes over the defaults."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from edgelm.compiler.limits import (
    EIGHT_BITS,
    EXACT,
    FEWER_BITS,
    FIVE_BITS,
    FOUR_BITS,
    GRADED,
    HALF,
    TOKENS_EIGHT,
    TOKENS_EXACT,
    TOKENS_FEWER,
    Limits,
    failures,
    limits_for,
)
from edgelm.compiler.recipe import load_recipe
from edgelm.runtime.manifest import Parity, Task
from edgelm.targets import all_precisions
from edgelm.targets.precision import AUTO, GRADES

TASK = Task("text-classification", ("a", "b"))
EMBED = Task("feature-extraction", dimensions=4)


def judge(limits: Limits, parity: Parity, accuracy: float = 0.9) -> tuple[str, ...]:
    return failures(TASK, limits, parity, {"accuracy": accuracy}, {"accuracy": 0.9})


@pytest.mark.parametrize(
    ("target", "precision", "limits"),
    [
        ("onnx", "fp32", EXACT),
        ("gguf", "f32", EXACT),
        ("gguf", "f16", HALF),
        ("onnx", "fp16", HALF),
        ("onnx", "int8", EIGHT_BITS),
        ("onnx", "int8-static", EIGHT_BITS),
        ("gguf", "q8_0", EIGHT_BITS),
        ("gguf", "q5_k_m", FIVE_BITS),
        ("gguf", "q4_0", FOUR_BITS),
        ("gguf", "q2_k", FEWER_BITS),
    ],
)
def test_defaults_by_precision(target: str, precision: str, limits: Limits) -> None:
    assert limits_for(load_recipe(None, {"model": "m"}), target, precision) == limits


def test_every_precision_has_limits() -> None:
    graded = {row.name: row.grade for _, row in all_precisions()}
    assert graded.pop(AUTO) is None  # which has the limits of what it comes to
    assert set(graded.values()) == GRADED.keys()


def test_a_variants_own_limit_goes_over_that_for_all() -> None:
    recipe = load_recipe(
        None,
        {
            "model": "m",
            "targets": ["onnx:int8", "gguf:q8_0"],
            "verify.max_drop": 0.05,
            "verify.limits": {"onnx:int8": {"max_drop": 0.0, "max_kl": 2}},
        },
    )
    onnx, gguf = limits_for(recipe, "onnx", "int8"), limits_for(recipe, "gguf", "q8_0")
    assert (onnx.max_drop, onnx.max_kl) == (0.0, 2.0)
    assert (gguf.max_drop, gguf.max_kl) == (0.05, EIGHT_BITS.max_kl)
    assert onnx.min_agreement == gguf.min_agreement == EIGHT_BITS.min_agreement


@pytest.mark.parametrize(
    ("limits", "n", "flips", "passes"),
    [
        (EXACT, 50, 0, True),
        (EXACT, 50, 1, False),  # exact is exact
        (EXACT, 1000, 1, True),
        (EIGHT_BITS, 10, 1, True),  # one text of few is no proof
        (EIGHT_BITS, 10, 2, False),
        (EIGHT_BITS, 100, 3, True),
        (EIGHT_BITS, 100, 4, False),
        (FOUR_BITS, 20, 2, True),  # exactly the limit
        (FOUR_BITS, 20, 3, False),
    ],
)
def test_flips(limits: Limits, n: int, flips: int, passes: bool) -> None:
    found = judge(limits, Parity(n, 0.1, agreement=1 - flips / n, kl_divergence=0.0))
    assert found == () if passes else (f"({flips} of {n} texts differ)" in found[0])


def test_each_limit_is_told_with_its_number() -> None:
    parity = Parity(100, 0.1, agreement=0.5, kl_divergence=0.25)
    agreement, kl, drop = judge(EIGHT_BITS, parity, accuracy=0.8)
    assert agreement == "agreement 0.5000 (50 of 100 texts differ) is under the limit 0.9700"
    assert kl == "mean KL divergence 2.50e-01 is over the limit 3.00e-02"
    assert drop == "accuracy 0.8000 is 0.1000 under the reference's 0.9000, the limit is 0.0100"


def test_a_better_metric_is_no_drop_and_small_data_gets_slack() -> None:
    fine = Parity(100, 0.1, agreement=1.0, kl_divergence=0.0)
    assert judge(EIGHT_BITS, fine, accuracy=1.0) == ()
    few = Parity(20, 0.1, agreement=0.95, kl_divergence=0.0)
    assert judge(EIGHT_BITS, few, accuracy=0.85) == ()  # one text of 20
    assert judge(EXACT, Parity(20, 0.1, 1.0, 0.0), accuracy=0.85) != ()


NAN = math.nan


@pytest.mark.parametrize(
    "parity",
    [
        Parity(10, NAN, agreement=1.0, kl_divergence=0.0),
        Parity(10, math.inf, agreement=1.0, kl_divergence=0.0),
        Parity(10, 0.1, agreement=1.0, kl_divergence=NAN),
        Parity(10, 0.1, min_cosine=NAN, mean_cosine=NAN),
        Parity(10, NAN, min_cosine=1.0, mean_cosine=1.0),
    ],
)
def test_nan_never_passes(parity: Parity) -> None:
    task = TASK if parity.mean_cosine is None else EMBED
    assert len(failures(task, FEWER_BITS, parity, {}, {})) == 1


def test_embeddings_are_judged_by_cosine() -> None:
    def found(mean: float) -> tuple[str, ...]:
        parity = Parity(10, 1.0, min_cosine=0.5, mean_cosine=mean)
        return failures(EMBED, EIGHT_BITS, parity, {}, {})

    assert found(0.99) == ()
    assert found(0.97) == ("mean cosine 0.97000 is under the limit 0.98000",)


def test_a_stated_limit_has_no_slack_and_very_few_texts_have_none() -> None:
    recipe = load_recipe(
        None, {"model": "m", "targets": ["onnx:int8"], "verify.max_drop": 0.0, "verify.max_kl": 1.0}
    )
    stated = limits_for(recipe, "onnx", "int8")
    few = Parity(20, 0.1, agreement=0.95, kl_divergence=0.0)
    assert "accuracy" in judge(stated, few, accuracy=0.85)[0]
    one = Parity(1, 0.1, agreement=0.0, kl_divergence=0.0)
    assert len(judge(EIGHT_BITS, one, accuracy=0.0)) == 2


def test_a_rank_correlation_has_no_slack() -> None:
    parity = Parity(20, 0.1, min_cosine=1.0, mean_cosine=1.0)
    assert failures(EMBED, EIGHT_BITS, parity, {"spearman": 0.85}, {"spearman": 0.9}) != ()
    assert failures(EMBED, EIGHT_BITS, parity, {"spearman": float("nan")}, {"spearman": 0.9}) != ()


GENERATE = Task("text-generation")


def test_limits_of_generation_grow_with_fewer_bits() -> None:
    recipe = load_recipe(None, {"model": "m", "task": "text-generation"})
    order = [limits_for(recipe, "gguf", grade) for grade in GRADES]  # named after types of GGUF
    assert order[0] == TOKENS_EXACT and order[-1] == TOKENS_FEWER
    for tighter, looser in pairwise(order):
        assert tighter.min_agreement > looser.min_agreement
        assert tighter.max_kl < looser.max_kl
        assert tighter.max_kl_p999 < looser.max_kl_p999
        assert tighter.max_perplexity_ratio <= looser.max_perplexity_ratio
        assert tighter.min_gain_kept >= looser.min_gain_kept


TOKENS = Parity(
    2000,
    1.0,
    agreement=0.96,
    kl_divergence=0.01,
    kl_p999=0.4,
    perplexity_ratio=1.01,
    gain_kept=0.97,
)
TUNED = {"loss": 1.0, "base_loss": 2.0}


def judge_tokens(limits: Limits, **numbers: float) -> tuple[str, ...]:
    return failures(GENERATE, limits, replace(TOKENS, **numbers), {"loss": 1.0}, TUNED)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (
            {"agreement": 0.9},
            "agreement 0.9000 (200 of 2000 tokens differ) is under the limit 0.9300",
        ),
        ({"kl_divergence": 0.03}, "mean KL divergence 3.00e-02 is over the limit 2.00e-02"),
        ({"kl_p999": 1.5}, "99.9 % KL divergence 1.50e+00 is over the limit 5.00e-01"),
        (
            {"perplexity_ratio": 1.1},
            "perplexity is 1.1000 of the reference's, over the limit 1.0300",
        ),
        (
            {"gain_kept": 0.9},
            "it keeps 0.9000 of what fine-tuning gained (1.0000 nats a token), under the limit "
            "0.9500",
        ),
    ],
)
def test_limits_of_generation(numbers: dict[str, float], says: str) -> None:
    assert judge_tokens(TOKENS_EIGHT) == ()
    assert judge_tokens(TOKENS_EIGHT, **numbers) == (says,)
    if "agreement" not in numbers:  # a share that can be counted is a number
        assert len(judge_tokens(TOKENS_FEWER, **dict.fromkeys(numbers, NAN))) == 1


def test_a_small_gain_is_judged_only_when_asked() -> None:
    small = {"loss": 1.0, "base_loss": 1.02}
    parity = replace(TOKENS, gain_kept=-0.5)
    assert failures(GENERATE, TOKENS_EIGHT, parity, {}, small) == ()
    stated = replace(TOKENS_EIGHT, min_gain_kept=0.5, stated=frozenset({"min_gain_kept"}))
    assert "keeps -0.5000" in failures(GENERATE, stated, parity, {}, small)[0]
    assert failures(GENERATE, TOKENS_EIGHT, replace(TOKENS, gain_kept=None), {}, {}) == ()
