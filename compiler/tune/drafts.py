"""What a short training says of a model.

What a file takes and how fast it is does not depend on what was learned. So a model that learned
little shows which of its variants miss the budget's size, latency or memory, and the quality of one
that does not is what the model promises.
"""

from __future__ import annotations

from dataclasses import replace
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


def rate(model: Model, part: Fraction, plan: Plan) -> tuple[str, float] | None:
    """Name and value of the quality of the model after `part` of its epochs, in the first of its
    variants that fits the budget's size, latency and memory; those before it are closed, and where
    none fits all are. Raises what the passes to the model do."""
    whole = for_targets(model.context.recipe, [p.spec for p in model.open_points])
    # one that was fine-tuned in full by now is a better teacher, and costs nothing
    tuned = {training.key for other in plan.at_once for training in other.trainings}
    is_tuned = any(training.key in tuned for training in model.trainings)
    context = fresh(model.context, partly(whole, part, is_tuned=is_tuned))
    for step in steps(context.recipe).model:
        step.execute(context)
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
            return quality, draft.figures.metric
    return None


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
