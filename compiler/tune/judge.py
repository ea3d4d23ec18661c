"""What a search knows of its models, and the rules by which it judges: which points are closed,
which models are trained on, and which point is best. Nothing is made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from edgelm.compiler.tune.budget import Figures, drop_points, loss_of
from edgelm.compiler.tune.front import pareto_front
from edgelm.compiler.tune.halving import Rung
from edgelm.compiler.tune.space import Model, Plan, Point
from edgelm.compiler.tune.turns import part_name

HOPELESS_POINTS = 1.0  # so far over a bound, a reference has no variant that meets it
NEAR_POINTS = 0.3  # that a variant may lose for its model to be as good as it gets


class Judge:
    """The judge of one search."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.quality = ""  # the figure that models are compared by
        self.reference: float | None = None  # that of the model with nothing left out
        self.values: dict[str, float] = {}  # of the models' references
        self.promises: dict[str, float] = {}  # of models, after a part of their epochs
        self.behind: dict[str, str] = {}  # model -> why it is not trained on

    def close_missed(self, point: Point) -> None:
        """Close a point that is known to miss a bound."""
        if point.state not in ("open", "made"):
            return
        value = point.figures.metric
        if self.reference is not None and value is not None:
            drop = drop_points(self.quality, value, self.reference)
            point.figures = replace(point.figures, drop_points=drop)
        missed = self.plan.budget.misses(point.figures)
        if missed:
            point.close("misses", "; ".join(missed))

    def is_needless(self, model: Model) -> bool:
        """Whether a gentler model meets the budget and lost next to nothing by quantization, so
        that this one cannot be better; closes the points then."""
        budget = self.plan.budget
        if not self.plan.spares:
            return False
        for other in self.plan.models:
            if other.name not in self.values or not is_gentler(other.place, model.place):
                continue
            for point in other.points:
                value = point.figures.metric
                if point.state != "made" or value is None or not budget.is_met(point.figures):
                    continue
                if drop_points(self.quality, value, self.values[other.name]) <= NEAR_POINTS:
                    model.close("needless", f"{point.name} meets the budget and leaves out less")
                    return True
        return False

    def drop_hopeless(self, model: Model, value: float) -> None:
        """Close the points of a model whose reference itself is far over a bound."""
        less = self.quality == "perplexity"
        kinder = value * (1 - HOPELESS_POINTS / 100) if less else value + HOPELESS_POINTS / 100
        drop = None
        if self.reference is not None:
            drop = drop_points(self.quality, kinder, self.reference)
        if self.plan.budget.misses(Figures(metric=kinder, drop_points=drop)):
            model.close("misses", f"{self.quality} {value:.4f} before it is quantized")

    def compare(
        self, trained: list[list[Model]], rung: Rung
    ) -> tuple[list[list[Model]], list[list[Model]]]:
        """Groups of models that are trained on, in their order, and those that are not, the more
        promising first; without those of which no point is open."""
        for group in trained:  # variants of the same trainings have the same sizes
            closed = {p.spec: p for p in group[0].points if p.state != "open"}
            for point in (p for m in group[1:] for p in m.open_points if p.spec in closed):
                point.close(closed[point.spec].state, closed[point.spec].reason)
        left = [g for g in trained if g[0].open_points and g[0].name in self.promises]
        left.sort(key=lambda g: loss_of(self.quality, self.promises[g[0].name]))
        kept, lost = left[: rung.n_kept], left[rung.n_kept :]
        for place, group in enumerate(lost, rung.n_kept + 1):
            value = self.promises[group[0].name]
            self.behind[group[0].name] = (
                f"{self.quality} {value:.4f} after {part_name(rung.part)}, place {place} of "
                f"{len(left)}"
            )
        return [g for g in trained if g in kept], lost

    def conclude(self, point: Point) -> None:
        """Whether the point meets the budget, now that all is known of it."""
        self.close_missed(point)
        if point.state != "made":
            return
        if self.plan.budget.is_met(point.figures):
            point.state = "meets"
        else:
            unknown = ", ".join(self.plan.budget.unknown(point.figures))
            where = "the device profile" if self.plan.profile else "this machine"
            point.close("unknown", f"{unknown}: no figure from {where}")

    def rank(self, point: Point) -> tuple[float, ...]:
        """Best first: by quality, then latency, then size."""
        return self.costs(point)[:3]

    def front(self) -> list[Point]:
        """Of the points whose quality is known; by latency and memory where all have them."""
        known = [p for p in self.plan.points if p.figures.metric is not None]
        known = [p for p in known if p.state in ("meets", "misses")]
        rows = [self.costs(p) for p in known]
        return [p for p, on in zip(known, pareto_front(rows), strict=True) if on]

    def costs(self, point: Point) -> tuple[float, float, float, float]:
        """Loss, latency, size and memory; of several machines latency and memory do not count."""
        loss, latency, size, memory = costs(self.quality, point)
        return (loss, 0, size, 0) if len(self.plan.machines) > 1 else (loss, latency, size, memory)


def is_gentler(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether on no axis more is left out at the place `a` than at `b`."""
    return all(i <= j for i, j in zip(a, b, strict=True))


def costs(quality: str, point: Point) -> tuple[float, float, float, float]:
    """Loss, latency, size and memory, all to be small; what is not known is infinite."""
    f = point.figures
    return (
        math.inf if f.metric is None else loss_of(quality, f.metric),
        math.inf if f.latency_ms is None else f.latency_ms,
        math.inf if f.size_bytes is None else float(f.size_bytes),
        math.inf if f.memory_bytes is None else float(f.memory_bytes),
    )
