"""How far a variant may be from its reference: defaults by grade, the recipe's over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from edgelm.compiler.recipe import Recipe
from edgelm.runtime.manifest import Parity, Task
from edgelm.runtime.metrics import main_metric
from edgelm.targets import precision_of
from edgelm.targets.precision import Grade

if TYPE_CHECKING:
    from edgelm.compiler.context import VariantState

MIN_FOR_SLACK = 10  # evaluation texts
MIN_GAIN = 0.05  # nats a token; of a smaller gain of fine-tuning no share is judged by default


@dataclass(frozen=True)
class Limits:
    """Limits of one variant. Each task has some of them; infinity and 0 are no limit."""

    min_agreement: float  # labels; generation: likeliest tokens
    max_drop: float = math.inf  # of the metric
    max_kl: float = math.inf
    min_cosine: float = 0.0  # embeddings
    # generation, for the rest
    max_kl_p999: float = math.inf
    max_perplexity_ratio: float = math.inf
    min_gain_kept: float = 0.0
    stated: frozenset[str] = frozenset()  # names of those that the user stated; no slack there


NAMES = tuple(f.name for f in fields(Limits) if f.name != "stated")


EXACT = Limits(min_agreement=0.999, max_drop=0.002, max_kl=1e-4, min_cosine=0.9999)
HALF = Limits(min_agreement=0.995, max_drop=0.005, max_kl=1e-3, min_cosine=0.999)
EIGHT_BITS = Limits(min_agreement=0.97, max_drop=0.01, max_kl=0.03, min_cosine=0.98)
FIVE_BITS = Limits(min_agreement=0.95, max_drop=0.02, max_kl=0.08, min_cosine=0.96)
FOUR_BITS = Limits(min_agreement=0.90, max_drop=0.04, max_kl=0.20, min_cosine=0.92)
FEWER_BITS = Limits(min_agreement=0.80, max_drop=0.10, max_kl=0.60, min_cosine=0.80)


def _tokens(agreement: float, kl: float, kl_p999: float, ratio: float, gain: float) -> Limits:
    return Limits(
        min_agreement=agreement, max_kl=kl, max_kl_p999=kl_p999, max_perplexity_ratio=ratio,
        min_gain_kept=gain,
    )  # fmt: skip


# Generation, where the measure is the next token. Small models lose most: the limits let pass what
# llama.cpp's quantizer makes of a model of 135 million weights, with some air, and no more. On 500
# tokens of support answers SmolLM2-135M-Instruct, without an importance matrix, gave as f16 a mean
# KL of 4e-6; as q8_0 0.0037 (same top token 0.954, perplexity 1.008); as q4_k_m 0.049 (0.890,
# 1.062); as q4_0 0.238 (0.754, 1.171).
# fmt: off
#                      same top    KL  99.9 %    ppl  gain
TOKENS_EXACT = _tokens(   0.998, 1e-4,   0.01, 1.001, 0.99)
TOKENS_HALF  = _tokens(   0.990, 1e-3,   0.05, 1.005, 0.98)
TOKENS_BRAIN = _tokens(   0.960, 0.01,   0.40, 1.020, 0.97)  # bf16: 8 bits of mantissa
TOKENS_EIGHT = _tokens(   0.930, 0.02,   0.50, 1.030, 0.95)
TOKENS_SIX   = _tokens(   0.910, 0.04,   1.00, 1.050, 0.95)
TOKENS_FIVE  = _tokens(   0.860, 0.10,   2.00, 1.100, 0.90)
TOKENS_FOUR  = _tokens(   0.680, 0.35,   5.00, 1.350, 0.90)
TOKENS_THREE = _tokens(   0.600, 0.70,   8.00, 1.700, 0.85)
TOKENS_FEWER = _tokens(   0.450, 1.20,  12.00, 2.500, 0.85)
# fmt: on

# Each grade of the targets' precisions: its limits for labels and vectors, and for tokens.
GRADED: dict[Grade, tuple[Limits, Limits]] = {
    "f32": (EXACT, TOKENS_EXACT),
    "f16": (HALF, TOKENS_HALF),
    "bf16": (HALF, TOKENS_BRAIN),
    "q8_0": (EIGHT_BITS, TOKENS_EIGHT),
    "q6_k": (EIGHT_BITS, TOKENS_SIX),
    "q5_0": (FIVE_BITS, TOKENS_FIVE),
    "q4_0": (FOUR_BITS, TOKENS_FOUR),
    "q3_k_m": (FEWER_BITS, TOKENS_THREE),
    "q2_k": (FEWER_BITS, TOKENS_FEWER),
}


def limits_for(
    recipe: Recipe, target: str, precision: str, graded_as: Grade | None = None
) -> Limits:
    """The limits that hold for `target:precision`; by default those of `graded_as` if given, which
    a precision without a grade needs."""
    grade = graded_as or precision_of(target, precision).grade
    assert grade is not None, (target, precision)
    labels, tokens = GRADED[grade]
    own = recipe.verify.limits.get(f"{target}:{precision}")
    stated: dict[str, float] = {}
    for config in (recipe.verify, own):
        for name in NAMES:
            value = getattr(config, name, None)
            if value is not None:
                stated[name] = float(value)
    base = tokens if recipe.task == "text-generation" else labels
    return replace(base, **stated, stated=frozenset(stated))


def limits_of(recipe: Recipe, state: VariantState) -> Limits:
    """The limits that hold for a lowered variant."""
    return limits_for(recipe, state.target, state.precision, state.lowered.graded_as)


def failures(
    task: Task,
    limits: Limits,
    parity: Parity,
    metrics: dict[str, float],
    reference: dict[str, float],
) -> tuple[str, ...]:
    """The limits that are missed, each with its number; empty when all hold.

    Limits that the user did not state let one text differ, but for the exact precisions and under
    MIN_FOR_SLACK texts: on 50 evaluation texts one text is already 2 points.
    """
    generates = task.kind == "text-generation"
    exact = limits.min_agreement >= EXACT.min_agreement
    slack = 0 if exact or parity.n < MIN_FOR_SLACK else 1
    found: list[str] = []
    if not math.isfinite(parity.max_abs_diff):
        found.append("its outputs hold NaN or infinity")
    found += _flips(limits, parity, slack, "tokens" if generates else "texts")
    if parity.kl_divergence is not None and not parity.kl_divergence <= limits.max_kl:
        found.append(
            f"mean KL divergence {parity.kl_divergence:.2e} is over the limit {limits.max_kl:.2e}"
        )
    if generates:
        return (*found, *_token_failures(limits, parity, reference))
    if parity.mean_cosine is not None and not parity.mean_cosine >= limits.min_cosine:
        found.append(
            f"mean cosine {parity.mean_cosine:.5f} is under the limit {limits.min_cosine:.5f}"
        )
    name = main_metric(task)
    if name in metrics and name in reference:
        drop = reference[name] - metrics[name]
        noise = slack * 1.5 / max(1, parity.n)
        if "max_drop" in limits.stated or task.kind == "feature-extraction":
            noise = 0.0
        if not drop <= max(limits.max_drop, noise):
            found.append(
                f"{name} {metrics[name]:.4f} is {drop:.4f} under the reference's "
                f"{reference[name]:.4f}, the limit is {limits.max_drop:.4f}"
            )
    return tuple(found)


def _flips(limits: Limits, parity: Parity, slack: int, noun: str) -> list[str]:
    """Whether too many labels, or likeliest tokens, are others."""
    if parity.agreement is None:
        return []
    flips = round((1 - parity.agreement) * parity.n)
    allowed = math.floor((1 - limits.min_agreement) * parity.n + 1e-9)  # 0.1 * 20 is 1.99…
    if flips <= max(0 if "min_agreement" in limits.stated else slack, allowed):
        return []
    return [
        f"agreement {parity.agreement:.4f} ({flips} of {parity.n} {noun} differ) is under "
        f"the limit {limits.min_agreement:.4f}"
    ]


def _token_failures(limits: Limits, parity: Parity, reference: dict[str, float]) -> list[str]:
    """The limits that only generation has. `reference` brings the loss before and after tuning."""
    found: list[str] = []
    if parity.kl_p999 is not None and not parity.kl_p999 <= limits.max_kl_p999:
        found.append(
            f"99.9 % KL divergence {parity.kl_p999:.2e} is over the limit {limits.max_kl_p999:.2e}"
        )
    ratio = parity.perplexity_ratio
    if ratio is not None and not ratio <= limits.max_perplexity_ratio:
        found.append(
            f"perplexity is {ratio:.4f} of the reference's, over the limit "
            f"{limits.max_perplexity_ratio:.4f}"
        )
    gain = reference.get("base_loss", 0.0) - reference.get("loss", 0.0)
    is_judged = gain >= MIN_GAIN or "min_gain_kept" in limits.stated
    if parity.gain_kept is not None and is_judged and not parity.gain_kept >= limits.min_gain_kept:
        found.append(
            f"it keeps {parity.gain_kept:.4f} of what fine-tuning gained ({gain:.4f} nats a "
            f"token), under the limit {limits.min_gain_kept:.4f}"
        )
    return found
