"""The points of a search, laid out before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgelm.compiler.cache import StageCache, digest
from edgelm.compiler.context import Context
from edgelm.compiler.hf import require_compile_extra
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.allocate import SPEC as AUTO
from edgelm.compiler.passes.intake import read_source
from edgelm.compiler.passes.lower import SMOOTHED_SPECS, check_target
from edgelm.compiler.pipeline import cache_root, steps
from edgelm.compiler.recipe import Recipe, with_overrides
from edgelm.compiler.recover.settings import recovery
from edgelm.compiler.sections import DistilConfig
from edgelm.compiler.tune.axes import Overrides, is_stated, models, targets
from edgelm.compiler.tune.budget import Budget, Figures, read_budget
from edgelm.compiler.tune.effort import learning_s, products_per_s, training_s, variant_s
from edgelm.compiler.tune.floors import Weights, count_weights, least_bytes
from edgelm.runtime.errors import (
    ModelError,
    RecipeError,
    TargetUnavailable,
    UsageError,
    VerificationError,
)
from edgelm.runtime.profile import DeviceProfile, read_profile
from edgelm.runtime.progress import Progress
from edgelm.runtime.schema import encode
from edgelm.targets.causal import is_causal

ORIGIN = "edgelm tune"  # of the values that a search chose
State = Literal["open", "made", "meets", "misses", "unknown", "failed", "untried", "needless"]


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


@dataclass
class Model:
    """What the points share that differ in their variants alone."""

    name: str
    context: Context  # of the passes before the training
    points: list[Point]
    place: tuple[int, ...]  # on the axes; larger leaves out more
    trainings: list[tuple[str, float]]  # key of each that has to be run, and about how long
    variant_s: float  # about, of each point

    @property
    def train_s(self) -> float:
        """About how long its trainings take."""
        return sum(seconds for _, seconds in self.trainings)

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
        return dict(training for model in self.to_make for training in model.trainings)

    @property
    def seconds(self) -> float:
        """About how long the search takes, when no point falls out on the way."""
        variants = sum(m.variant_s * len(m.open_points) for m in self.to_make)
        return variants + sum(self.trainings.values())


def make_plan(recipe: Recipe, progress: Progress) -> Plan:
    """Lay out the points; passes before the training are run. Raises what they do, and RecipeError,
    UsageError, TargetUnavailable."""
    require_compile_extra()
    budget = read_budget(recipe)
    file = recipe.budget.device_profile
    profile = None if file is None else read_profile(Path(file).expanduser())
    specs = able_targets(recipe, progress)
    cache, rate = StageCache(cache_root(recipe)), products_per_s()
    given = {"budget": None, **_limits(recipe), **_auto_size(recipe)}
    bare = with_overrides(recipe, given, ORIGIN)
    first = start(for_targets(bare, specs), cache, progress)
    assert first.source is not None
    decoder = recipe.task == "text-generation" or is_causal(first.source.folder)
    seen: set[str] = set()
    found: list[Model] = []
    for name, overrides, place in models(recipe, decoder=decoder):
        try:
            own = for_targets(with_overrides(bare, overrides, ORIGIN), specs)
            context = start(own, cache, progress) if overrides else first
            model = lay_out(name, context, place, budget, rate, seen)
        except (ModelError, VerificationError, UsageError) as err:
            if not overrides:
                raise
            progress.note(f"note: {name} is not tried: {err.message}")
            continue
        if model.points:
            found.append(model)
    return Plan(recipe, budget, profile, found)


def able_targets(recipe: Recipe, progress: Progress) -> list[str]:
    """The targets to try. One that the recipe states and that cannot be made is an error."""
    stated, found = is_stated(recipe, "targets"), list[str]()
    for spec in targets(recipe):
        try:
            check_target(recipe, spec)
        except (RecipeError, TargetUnavailable) as err:
            if stated:
                raise
            progress.note(f"note: {spec} is not tried: {err.message}")
        else:
            found.append(spec)
    if not found:
        raise TargetUnavailable("no target can be tried here", hint="see: edgelm targets")
    return found


def start(recipe: Recipe, cache: StageCache, progress: Progress) -> Context:
    """A context after the passes before the training."""
    context = Context(recipe, cache, progress)
    for step in steps(recipe).source:
        step.execute(context)
    return context


def lay_out(
    name: str,
    context: Context,
    place: tuple[int, ...],
    budget: Budget,
    rate: float,
    seen: set[str],
) -> Model:
    """The points of a model that are not among `seen`, which grows. Those that are too large for
    sure are closed."""
    assert context.source is not None
    recipe = context.recipe
    weights = count_weights(context.source.folder, recipe)
    own = bool(recipe.quantize.tensor_types)
    content = read_source(context.source.folder).digest
    points: list[Point] = []
    for spec in recipe.targets:
        prune = recipe.prune
        cuts = [prune.layers, prune.heads, prune.ffn, prune.sparsity, recipe.distil.student]
        same = digest([content, cuts, spec, recovery(recipe, spec)])
        if same in seen:  # as a vocabulary that is not larger than what another leaves of it
            continue
        seen.add(same)
        floor = least_bytes(weights, spec, own_types=own)
        point = Point(name, spec, for_targets(recipe, [spec]), floor)
        missed = budget.misses(Figures(size_bytes=floor))
        if missed:
            point.close("misses", f"at least {missed[0]}")
        points.append(point)
    return Model(
        name=name,
        context=context,
        points=points,
        place=place,
        trainings=trainings(context, weights, rate),
        variant_s=variant_s(context, weights, rate),
    )


def trainings(context: Context, weights: Weights, rate: float) -> list[tuple[str, float]]:
    """Key of each training of the model that is not kept, and about how long it takes."""
    assert context.source is not None
    scratch = replace(
        context, progress=Progress("quiet"), notes=[], digests=dict(context.digests), variants={}
    )
    whole = with_overrides(
        context.recipe, {f"prune.{k}": None for k in ("layers", "heads", "ffn")}, ORIGIN
    )
    found: list[tuple[str, float]] = []
    before = f"{context.source.digest} {context.recipe.seed}"
    known = True  # whether all so far is kept, so that what comes next can be looked up
    for step in steps(context.recipe).model:
        known = known and is_kept(step, scratch)
        if known:
            step.execute(scratch)
        elif step.name == "finetune":
            full = count_weights(context.source.folder, replace(whole, distil=DistilConfig()))
            found.append((before, training_s(context, full, rate)))
        elif step.name == "shrink":
            prune, student = context.recipe.prune, context.recipe.distil.student
            cuts = [prune.layers, prune.heads, prune.ffn, student]
            found.append((f"{before} {cuts}", learning_s(context, weights, rate)))
    return found


def is_kept(step: Pass, context: Context) -> bool:
    """Whether the pass has nothing to do, or its stage is kept."""
    inputs = step.inputs(context)
    return inputs is None or (
        context.cache.find(step.name, context.cache.key(step.name, inputs)) is not None
    )


def for_targets(recipe: Recipe, specs: list[str]) -> Recipe:
    """The recipe for these targets alone."""
    own = encode(recipe.verify.limits)
    changes: dict[str, Any] = {
        "targets": specs,
        "verify.limits": {spec: limits for spec, limits in own.items() if spec in specs},
    }
    if changes["verify.limits"] == own:
        del changes["verify.limits"]
    if AUTO not in specs and recipe.quantize.auto_size is not None:  # which is for that alone
        changes["quantize.auto_size"] = None
    if recipe.quantize.smooth is not None and set(SMOOTHED_SPECS).isdisjoint(specs):
        changes["quantize.smooth"] = None
    return with_overrides(recipe, changes, ORIGIN)


def _auto_size(recipe: Recipe) -> Overrides:
    """gguf:auto keeps to the budget's size where it has none of its own."""
    stated, most = recipe.quantize.auto_size, recipe.budget.max_size
    if AUTO not in recipe.targets or stated is not None or most is None:
        return {}
    return {"quantize.auto_size": most}


def _limits(recipe: Recipe) -> Overrides:
    """What a stated drop means for verification, where the recipe states no limit of its own."""
    drop = recipe.budget.max_drop
    if drop is None:
        return {}
    if recipe.task == "text-generation":
        limits = {"verify.max_perplexity_ratio": 1 + drop / 100}
    else:
        limits = {"verify.max_drop": drop / 100, "distil.max_drop": drop / 100}
    return {key: limit for key, limit in limits.items() if not is_stated(recipe, key)}
