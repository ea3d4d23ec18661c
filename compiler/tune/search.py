"""The search: every open point is made by the ordinary passes, through the stage cache.

What several points share is made once, and a search that was stopped goes on from the cache. A
point is left as soon as it misses a bound: after lowering by its size, after verification by its
quality. Many trainings are begun with few epochs, and the promising ones done in full. What is left
is measured at the end, when nothing else runs.

Several processes may run the same search: turns.py. What is made for a study is measured at once,
as no other process could measure it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction

from edgelm.compiler.machine import machine_id
from edgelm.compiler.tune import points
from edgelm.compiler.tune.budget import Figures, quality_name, quality_value
from edgelm.compiler.tune.drafts import make_draft
from edgelm.compiler.tune.halving import rungs
from edgelm.compiler.tune.judge import Judge
from edgelm.compiler.tune.outcome import Outcome, PointOutcome
from edgelm.compiler.tune.space import Model, Plan, Point, groups
from edgelm.compiler.tune.turns import Attempt, sharing, taken
from edgelm.runtime.errors import ModelError, RecipeError, TargetUnavailable, VerificationError
from edgelm.runtime.progress import Progress

MEASURE_S = 6.0  # of the time budget, kept for each point that is to be measured
N_NEAREST = 3
WHOLE = Fraction(1)


@dataclass(frozen=True)
class Found:
    """What a search found."""

    plan: Plan
    quality: str  # the figure that models are compared by
    reference: float | None  # that of the model with nothing left out, where it was made
    best: Point | None
    front: list[Point]  # measured points, of which none is worse than another in everything
    seconds: float

    @property
    def nearest(self) -> list[Point]:
        """Points that do not meet the budget, the nearest first."""
        missed = [p for p in self.plan.points if p.state in ("misses", "unknown")]
        missed.sort(key=lambda p: self.plan.budget.distance(at_least(p)))
        return missed[:N_NEAREST]

    @property
    def untried(self) -> list[Point]:
        """Points for which there was no time."""
        return [p for p in self.plan.points if p.state == "untried"]


def search(plan: Plan, progress: Progress, clock: Callable[[], float] = time.monotonic) -> Found:
    """Make, judge and measure the points. Raises what passes do for reasons that hold for all."""
    return Search(plan, progress, clock).run()


class Search:
    """One search under way; `run` is the whole of it."""

    def __init__(self, plan: Plan, progress: Progress, clock: Callable[[], float]) -> None:
        self.plan, self.progress, self.clock = plan, progress, clock
        self.started = clock()
        self.judge = Judge(plan)
        self.first = plan.at_once  # of the plan as it is before anything is made
        self.tuned = set[str]()  # keys of trainings in full, of those models
        self.done = set[tuple[str, Fraction]]()  # keys of trainings, and how much of the epochs
        self.pace = 0.0  # seconds of the last training, for each one estimated; 0: not known

    def run(self) -> Found:
        plan = self.plan
        take_turns = sharing(plan, self.progress, self)
        for batch in self.batches():
            with closing(take_turns(batch)) as attempts:
                for attempt in attempts:
                    if attempt.part == 1:
                        self.make(attempt.model)
                    else:
                        self.rate(attempt)
        for point in plan.points:  # some were made before the reference was known
            self.judge.close_missed(point)
        self.measure(plan.models)
        for point in plan.points:
            self.judge.conclude(point)
        met = [p for p in plan.points if p.state == "meets"]
        return Found(
            plan=plan,
            quality=self.judge.quality,
            reference=self.judge.reference,
            best=min(met, key=self.judge.rank, default=None),
            front=self.judge.front(),
            seconds=self.clock() - self.started,
        )

    def tell(self, attempt: Attempt) -> Outcome:
        """For other processes: what was found of a model, measured."""
        model, is_whole = attempt.model, attempt.part == 1
        self.measure([model])
        return Outcome(
            quality=self.judge.quality,
            reference=self.judge.values.get(model.name),
            promise=None if is_whole else self.judge.promises.get(model.name),
            points={p.spec: PointOutcome.of(p) for p in model.points},
        )

    def hear(self, attempt: Attempt, outcome: Outcome) -> None:
        """Take over what another process found of a model."""
        model = attempt.model
        self.judge.quality = self.judge.quality or outcome.quality
        if outcome.promise is not None:
            self.judge.promises[model.name] = outcome.promise
        if outcome.reference is not None:
            self.judge.values[model.name] = outcome.reference
            if model is self.plan.models[0]:
                self.judge.reference = outcome.reference
        for point in model.points:
            outcome.points[point.spec].take_over(point)
        for point in self.plan.points:
            self.judge.close_missed(point)

    def measure(self, models: Sequence[Model]) -> None:
        """What was made here, while no other process on the cache measures."""
        cache = self.plan.models[0].context.cache
        with taken(cache, ["measure", machine_id()]):
            for model in models:
                for point in model.points:
                    here = point.variant in model.context.variants
                    if here and point.state == "made" and not point.measured_on:
                        points.measure(point, model.context, self.plan.profile)

    def batches(self) -> Iterator[list[Attempt]]:
        """What is to be tried next; which that is depends on how the batches before it went."""
        plan = self.plan
        yield [Attempt(m) for m in self.first]
        rest = [m for m in plan.to_make if m not in self.first and not self.judge.is_needless(m)]
        trained, behind = groups(rest), list[list[Model]]()
        for rung in rungs(len(trained), plan.recipe.budget.halving):
            yield [Attempt(group[0], rung.part) for group in trained]
            trained, lost = self.judge.compare(trained, rung)
            behind = lost + behind
        kept = [m for group in trained for m in group]
        yield [Attempt(m) for m in rest if m in kept or not m.trainings]
        for group in behind:
            if any(p.state == "made" for p in plan.points):
                for model in group:
                    model.close("behind", self.judge.behind[group[0].name])
            else:
                yield [Attempt(m) for m in group]

    def rate(self, attempt: Attempt) -> None:
        """What the model promises after a part of its epochs."""
        model = attempt.model
        if self.judge.is_needless(model) or not self.has_time_for(model, attempt.part):
            return
        self.progress.note(f"{attempt.name}: what it promises")
        try:
            draft = make_draft(model, attempt.part, self.plan, self.tuned)
        except (ModelError, VerificationError) as err:
            model.close("failed", err.message)
            return
        self.note_trainings(model, attempt.part, draft.seconds)
        self.judge.quality = draft.quality
        if draft.promise is not None:
            self.judge.promises[model.name] = draft.promise

    def make(self, model: Model) -> None:
        """All but measuring, for the open points of one model."""
        is_full = model is self.plan.models[0]
        needed = is_full and self.plan.needs_full
        if not needed and (self.judge.is_needless(model) or not self.has_time_for(model)):
            return
        context, n = model.context, len(model.open_points)
        self.progress.note(f"{model.name}: {n} variants to make")
        try:
            spent = points.make_model(model.passes(), context)
        except (ModelError, VerificationError) as err:
            if is_full:
                raise
            model.close("failed", err.message)
            return
        self.note_trainings(model, WHOLE, spent)
        if model in self.first:
            self.tuned |= {t.key for t in model.trainings}
        assert context.task is not None
        self.judge.quality = quality_name(context.task, context.reference_metrics)
        value = quality_value(self.judge.quality, context.reference_metrics, None)
        if value is not None:
            self.judge.values[model.name] = value
        if is_full:
            self.judge.reference = value
        elif value is not None:
            self.judge.drop_hopeless(model, value)
        for point in model.open_points:
            if self.left_s() <= 0:
                point.close("untried", "no time was left")
            else:
                self.make_variant(point, model)

    def make_variant(self, point: Point, model: Model) -> None:
        """Lower and verify."""
        try:
            points.lower(point, model.context)
            self.judge.close_missed(point)
            if point.state != "open":
                return
            state = points.verify(point, model.context, self.judge.quality)
        except (ModelError, RecipeError, TargetUnavailable, VerificationError) as err:
            point.close("failed", err.message)  # RecipeError: auto has no file so small
            return
        point.state = "made"
        self.judge.close_missed(point)
        if state.failures:
            point.close("failed", f"verification: {state.failures[0]}")

    def left_s(self) -> float:
        """Of the time budget, what is free for making points."""
        if self.plan.budget.time_s is None:
            return math.inf
        made = sum(p.state == "made" and not p.measured_on for p in self.plan.points)
        return self.plan.budget.time_s - (self.clock() - self.started) - MEASURE_S * made

    def note_trainings(self, model: Model, part: Fraction, spent: Mapping[str, float]) -> None:
        """That so much of the model's trainings is done; the passes that ran took `spent` s."""
        ran = [t for t in model.trainings if t.stage in spent]
        planned = float(part) * sum(t.seconds for t in ran)
        if planned:
            self.pace = sum(spent[t.stage] for t in ran) / planned
        self.done |= {(t.key, part) for t in model.trainings}

    def has_time_for(self, model: Model, part: Fraction = WHOLE) -> bool:
        """Whether there is time for what is left of so much of the model's trainings; closes its
        points if not."""
        todo = [t for t in model.trainings if (t.key, part) not in self.done]
        if part < 1:
            todo = [t for t in todo if t.key not in self.tuned]
        need, left = float(part) * sum(t.seconds for t in todo) * self.pace, self.left_s()
        if left > need:
            return True
        left = max(0.0, left)
        model.close(
            "untried",
            f"its training takes about {need / 60:.0f} min, {left / 60:.0f} min are left"
            if need
            else "no time was left",
        )
        return False


def at_least(point: Point) -> Figures:
    """The point's figures, with the least size in place of one that is not known."""
    if point.figures.size_bytes is not None:
        return point.figures
    return replace(point.figures, size_bytes=point.floor_bytes)
