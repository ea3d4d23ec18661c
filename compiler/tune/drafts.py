"""What a short training says of a model.

What a file takes and how fast it is does not depend on what was learned. So a model that learned
little shows which of its variants miss the budget's size, latency or memory, and the quality of one
that does not is what the model promises.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from fractions import Fraction

from edgelm.compiler.machine import machine_id
from edgelm.compiler.passes.shrink import is_shrunk
from edgelm.compiler.pipeline import steps
from edgelm.compiler.recipe import Recipe, with_overrides
from edgelm.compiler.training import is_trained, settled, settled_distil
from edgelm.compiler.tune import points
from edgelm.compiler.tune.axes import Overrides
from edgelm.compiler.tune.budget import Budget, Figures, quality_name
from edgelm.compiler.tune.space import ORIGIN, Model, Plan, Point, for_targets, fresh
from edgelm.compiler.tune.turns import taken
from edgelm.runtime.errors import ModelError, RecipeError, TargetUnavailable, VerificationError

SLACK = 1.25  # over a bound of latency or memory, as others may be at work while it is measured


@dataclass(frozen=True)
class Draft:
    """A model after a part of its epochs."""

    quality: str  # name of the figure that models are compared by
    promise: float | None  # its value; None where no variant fits the budget
    seconds: dict[str, float]  # of the passes that were not kept


def make_draft(model: Model, part: Fraction, plan: Plan, tuned: Set[str]) -> Draft:
    """What the model promises after `part` of its epochs: the quality of the first of its variants
    that fits the budget's size, latency and memory; those before it are closed, and where none fits
    all are. Trainings of the keys `tuned` were done in full, and are taken so: a better teacher,
    for nothing. Raises what the passes to the model do."""
    whole = for_targets(model.context.recipe, [p.spec for p in model.open_points])
    is_tuned = any(t.key in tuned for t in model.trainings)
    context = fresh(model.context, partly(whole, part, is_tuned=is_tuned))
    seconds = points.make_model(steps(context.recipe).model, context)
    assert context.task is not None
    quality = quality_name(context.task, context.reference_metrics)
    for point in model.open_points:
        own = partly(point.recipe, part, is_tuned=is_tuned)
        draft = Point(point.model, point.spec, own, point.floor_bytes)
        context.recipe = own
        try:
            points.lower(draft, context)
            if not _misses(point, draft, plan.budget):
                points.verify(draft, context, quality)
                if plan.budget.has_costs:
                    with taken(context.cache, ["measure", machine_id()]):
                        points.measure(draft, context, plan.profile)
        except (ModelError, RecipeError, TargetUnavailable, VerificationError) as err:
            draft.close("failed", err.message)
        if draft.state == "failed":
            point.close("failed", draft.reason)
        elif not _misses(point, draft, plan.budget) and draft.figures.metric is not None:
            return Draft(quality, draft.figures.metric, seconds)
    return Draft(quality, None, seconds)


def _misses(point: Point, draft: Point, budget: Budget) -> bool:
    """Whether the draft is over what the point may cost; closes the point then."""
    found = draft.figures
    kinder = Figures(
        size_bytes=found.size_bytes,
        latency_ms=None if found.latency_ms is None else found.latency_ms / SLACK,
        memory_bytes=None if found.memory_bytes is None else int(found.memory_bytes / SLACK),
    )
    if not budget.misses(kinder):
        return False
    costs = replace(found, metric=None, drop_points=None)
    point.figures = costs
    point.close("misses", "; ".join(budget.misses(costs)))
    return True


def partly(recipe: Recipe, part: Fraction, *, is_tuned: bool) -> Recipe:
    """The recipe with so much of its epochs, and without recovery, which changes no size.
    `is_tuned`: the fine-tuning stays whole."""
    changes: Overrides = {"recover.method": "none"}
    if is_trained(recipe) and not is_tuned:
        changes["train.epochs"] = float((settled(recipe).epochs or 0) * part)
    if is_shrunk(recipe):
        changes["distil.epochs"] = float((settled_distil(recipe).epochs or 0) * part)
    return with_overrides(recipe, changes, ORIGIN)
