"""What a search goes over, and what is known of it: points, the models they share, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgelm.compiler.context import Context
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.allocate import is_auto
from edgelm.compiler.passes.lower import is_smoothed
from edgelm.compiler.pipeline import steps
from edgelm.compiler.recipe import Recipe, with_overrides
from edgelm.compiler.tune.budget import Budget, Figures
from edgelm.compiler.tune.halving import rungs
from edgelm.runtime.profile import DeviceProfile
from edgelm.runtime.schema import encode
from edgelm.targets.precision import AUTO

ORIGIN = "edgelm tune"  # of the values that a search chose
State = Literal[
    "open", "made", "meets", "misses", "unknown", "failed", "untried", "needless", "behind"
]


@dataclass
class Point:
    """One variant of one model: a recipe, and what is known of it."""

    model: str  # name of the model
    spec: str  # TARGET:PRECISION
    recipe: Recipe  # that compiles it alone, with no budget
    floor_bytes: int  # its size is at least this
    figures: Figures = field(default_factory=Figures)
    state: State = "open"
    reason: str = ""  # why it is not open, nor meets the budget
    measured_on: str = ""  # the machine that latency and memory are of, if any

    @property
    def name(self) -> str:
        """`vocabulary 4000, onnx:int8`"""
        return f"{self.model}, {self.spec}"

    @property
    def variant(self) -> str:
        """`onnx-int8`"""
        return self.spec.replace(":", "-")

    def close(self, state: State, reason: str) -> None:
        """Nothing more is done for this point."""
        self.state, self.reason = state, reason


@dataclass(frozen=True)
class Training:
    """Of a model; models share those with the same key."""

    stage: str  # finetune or shrink
    key: str
    seconds: float  # about; 0 where it is kept


@dataclass(eq=False)
class Model:
    """What the points share that differ in their variants alone."""

    name: str
    context: Context  # of the passes before the training
    points: list[Point]
    place: tuple[int, ...]  # on the axes; larger leaves out more
    trainings: list[Training]
    variant_s: float  # about, of each point

    @property
    def open_points(self) -> list[Point]:
        """Those that may meet the budget."""
        return [p for p in self.points if p.state == "open"]

    def passes(self) -> list[Pass]:
        """The passes to the model that is lowered, of which the context's recipe is told."""
        specs = [p.spec for p in self.open_points] or [self.points[0].spec]
        self.context.recipe = for_targets(self.context.recipe, specs)
        return steps(self.context.recipe).model

    def close(self, state: State, reason: str) -> None:
        """Nothing more is done for its open points."""
        for point in self.open_points:
            point.close(state, reason)


@dataclass
class Plan:
    """A search that has not begun."""

    recipe: Recipe
    budget: Budget
    profile: DeviceProfile | None
    models: list[Model]  # the one with nothing left out first

    @property
    def points(self) -> list[Point]:
        """All points, in the order in which they are made."""
        return [p for model in self.models for p in model.points]

    @property
    def machines(self) -> list[str]:
        """Those that latency and memory were measured on; with several these are not compared."""
        return sorted({p.measured_on for p in self.points if p.measured_on})

    @property
    def needs_full(self) -> bool:
        """Whether the model with nothing left out is needed as the reference of drops."""
        return self.budget.has("max_drop") and any(m.open_points for m in self.models)

    @property
    def to_make(self) -> list[Model]:
        """The models that are made."""
        first = self.models[0] if self.needs_full else None
        return [m for m in self.models if m.open_points or m is first]

    @property
    def trainings(self) -> dict[str, float]:
        """Those that have to be run, each once, and about how long they take."""
        return _trainings(self.to_make)

    @property
    def at_once(self) -> list[Model]:
        """What is made before anything is compared: the reference, and where nothing has to be
        measured the gentlest model, which may make the others needless."""
        n = int(self.needs_full) + int(self.spares)
        return self.to_make[:n]

    @property
    def spares(self) -> bool:
        """Whether models may be needless because a gentler one is good enough; not where latency
        or memory are bounded, which are measured at the end."""
        return bool(self.budget.bounds) and not self.budget.has_costs

    @property
    def seconds(self) -> float:
        """About how long the search takes, when no point falls out on the way."""
        rest = [m for m in self.to_make if m not in self.at_once]
        left = groups(rest)
        seconds = 0.0
        for rung in rungs(len(left), self.recipe.budget.halving):
            tried = [group[0] for group in left]
            seconds += float(rung.part) * sum(_trainings(tried).values())
            seconds += sum(m.variant_s for m in tried)
            left = left[: rung.n_kept]
        made = [*self.at_once, *(m for m in rest if not m.trainings), *(m for g in left for m in g)]
        variants = sum(m.variant_s * len(m.open_points) for m in made)
        return seconds + variants + sum(_trainings(made).values())


def _trainings(models: Sequence[Model]) -> dict[str, float]:
    return {t.key: t.seconds for model in models for t in model.trainings if t.seconds}


def groups(models: Sequence[Model]) -> list[list[Model]]:
    """The models of the same trainings, together; those that are not trained are left out."""
    found: dict[tuple[str, ...], list[Model]] = {}
    for model in models:
        if model.trainings:
            found.setdefault(tuple(t.key for t in model.trainings), []).append(model)
    return list(found.values())


def fresh(context: Context, recipe: Recipe) -> Context:
    """As the context was after the passes before the training, for another recipe."""
    return replace(
        context, recipe=recipe, notes=[], digests=dict(context.digests), variants={}, training={},
        curvatures={}, tables={}, types={}, recovered={}, recoveries={},
    )  # fmt: skip


def for_targets(recipe: Recipe, specs: list[str]) -> Recipe:
    """The recipe for these targets alone."""
    own = encode(recipe.verify.limits)
    changes: dict[str, Any] = {
        "targets": specs,
        "verify.limits": {spec: limits for spec, limits in own.items() if spec in specs},
    }
    if changes["verify.limits"] == own:
        del changes["verify.limits"]
    has_auto = any(map(is_auto, specs))
    if not has_auto and recipe.quantize.auto_size is not None:  # which is for that alone
        changes["quantize.auto_size"] = None
    if f"gguf:{AUTO}" not in specs and recipe.quantize.auto_types:
        changes["quantize.auto_types"] = []
    if recipe.quantize.smooth is not None and not any(map(is_smoothed, specs)):
        changes["quantize.smooth"] = None
    return with_overrides(recipe, changes, ORIGIN)
