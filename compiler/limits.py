"""How far a variant may be from its reference: defaults by precision, the recipe's over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgelm.compiler.recipe import Recipe
from edgelm.runtime.manifest import Parity, Task
from edgelm.runtime.metrics import main_metric


@dataclass(frozen=True)
class Limits:
    """Limits of one variant; cosine is for embeddings, the rest for classification."""

    min_agreement: float
    max_drop: float
    max_kl: float
    min_cosine: float
    stated: frozenset[str] = frozenset()  # names of those that the user stated; no slack there


MIN_FOR_SLACK = 10  # evaluation texts
EXACT = Limits(min_agreement=0.999, max_drop=0.002, max_kl=1e-4, min_cosine=0.9999)
HALF = Limits(min_agreement=0.995, max_drop=0.005, max_kl=1e-3, min_cosine=0.999)
EIGHT_BITS = Limits(min_agreement=0.97, max_drop=0.01, max_kl=0.03, min_cosine=0.98)
FIVE_BITS = Limits(min_agreement=0.95, max_drop=0.02, max_kl=0.08, min_cosine=0.96)
FOUR_BITS = Limits(min_agreement=0.90, max_drop=0.04, max_kl=0.20, min_cosine=0.92)
FEWER_BITS = Limits(min_agreement=0.80, max_drop=0.10, max_kl=0.60, min_cosine=0.80)

_BY_PREFIX = (
    (("fp32", "f32"), EXACT),
    (("fp16", "f16", "bf16"), HALF),
    (("int8", "q8", "q6"), EIGHT_BITS),
    (("q5",), FIVE_BITS),
    (("int4", "q4", "iq4", "mxfp4", "nvfp4"), FOUR_BITS),
)


def limits_for(recipe: Recipe, target: str, precision: str) -> Limits:
    """The limits that hold for `target:precision`."""
    base = next((x for names, x in _BY_PREFIX if precision.startswith(names)), FEWER_BITS)
    own = recipe.verify.limits.get(f"{target}:{precision}")

    stated: dict[str, float] = {}
    for config in (recipe.verify, own):
        for name in ("min_agreement", "max_drop", "max_kl", "min_cosine"):
            value = getattr(config, name, None)
            if value is not None:
                stated[name] = float(value)
    return replace(base, **stated, stated=frozenset(stated))


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
    found: list[str] = []
    exact = limits.min_agreement >= EXACT.min_agreement
    slack = 0 if exact or parity.n < MIN_FOR_SLACK else 1
    if not math.isfinite(parity.max_abs_diff):
        found.append("its outputs hold NaN or infinity")
    if parity.agreement is not None:
        flips = round((1 - parity.agreement) * parity.n)
        allowed = math.floor((1 - limits.min_agreement) * parity.n + 1e-9)  # 0.1 * 20 is 1.99…
        if flips > max(0 if "min_agreement" in limits.stated else slack, allowed):
            found.append(
                f"agreement {parity.agreement:.4f} ({flips} of {parity.n} texts differ) is under "
                f"the limit {limits.min_agreement:.4f}"
            )
    if parity.kl_divergence is not None and not parity.kl_divergence <= limits.max_kl:
        found.append(
            f"mean KL divergence {parity.kl_divergence:.2e} is over the limit {limits.max_kl:.2e}"
        )
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
        if drop > max(limits.max_drop, noise):
            found.append(
                f"{name} {metrics[name]:.4f} is {drop:.4f} under the reference's "
                f"{reference[name]:.4f}, the limit is {limits.max_drop:.4f}"
            )
    return tuple(found)
