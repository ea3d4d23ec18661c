"""The points of a search, laid out before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from edgelm.compiler.cache import StageCache, digest
from edgelm.compiler.context import Context
from edgelm.compiler.hf import require_compile_extra
from edgelm.compiler.passes.allocate import is_auto
from edgelm.compiler.passes.intake import read_source
from edgelm.compiler.passes.lower import check_target
from edgelm.compiler.pipeline import cache_root, steps
from edgelm.compiler.recipe import Recipe, with_overrides
from edgelm.compiler.recover.settings import recovery
from edgelm.compiler.shrinking import DistilConfig
from edgelm.compiler.training import is_trained
from edgelm.compiler.tune.axes import Overrides, is_stated, models, targets
from edgelm.compiler.tune.budget import Budget, Figures, read_budget
from edgelm.compiler.tune.effort import learning_s, products_per_s, training_s, variant_s
from edgelm.compiler.tune.points import is_kept
from edgelm.compiler.tune.sizes import Weights, count_weights, floor_bytes
from edgelm.compiler.tune.space import ORIGIN, Model, Plan, Point, Training, for_targets, fresh
from edgelm.runtime.errors import (
    MissingExtra,
    ModelError,
    RecipeError,
    TargetUnavailable,
    UsageError,
    VerificationError,
)
from edgelm.runtime.profile import read_profile
from edgelm.runtime.progress import Progress
from edgelm.runtime.schema import encode
from edgelm.targets.causal import is_causal

# an overrides' value: what is left of the vocabulary is seen by the model itself
_UNTRIMMED: Overrides = {"prune.vocab": False, "prune.vocab_size": None, "prune.vocab_texts": None}


def make_plan(recipe: Recipe, progress: Progress) -> Plan:
    """Lay out the points; passes before the training are run. Raises what they do, and RecipeError,
    UsageError, TargetUnavailable, MissingExtra."""
    require_compile_extra()
    if recipe.budget.study is not None and find_spec("optuna") is None:
        raise MissingExtra("optuna", "tune")
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
        alone = for_targets(recipe, [spec])
        # a vocabulary is what it leaves of the model, a recovery what it comes to
        plain = with_overrides(alone, {**_UNTRIMMED, "recover.method": "auto"}, ORIGIN)
        same = digest([content, recovery(recipe, spec), {**encode(plain), "origins": None}])
        if same in seen:  # as a vocabulary that is not larger than what another leaves of it
            continue
        seen.add(same)
        floor = floor_bytes(weights, spec, own_types=own)
        point = Point(name, spec, alone, floor)
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


def trainings(context: Context, weights: Weights, rate: float) -> list[Training]:
    """Those of the model."""
    assert context.source is not None
    scratch = replace(fresh(context, context.recipe), progress=Progress("quiet"))
    whole = with_overrides(
        context.recipe, {f"prune.{k}": None for k in ("layers", "heads", "ffn")}, ORIGIN
    )
    found: list[Training] = []
    data = encode(with_overrides(context.recipe, _UNTRIMMED, ORIGIN))
    tuned = digest([context.source.digest, *(data[k] for k in ("seed", "train", "lora"))])
    known = True  # whether all so far is kept, so that what comes next can be looked up
    for step in steps(context.recipe).model:
        known = known and is_kept(step, scratch)
        if known:
            step.execute(scratch)
        if step.name == "finetune" and is_trained(context.recipe):
            full = count_weights(context.source.folder, replace(whole, distil=DistilConfig()))
            seconds = 0.0 if known else training_s(context, full, rate)
            found.append(Training(step.name, tuned, seconds))
        elif step.name == "shrink":
            seconds = 0.0 if known else learning_s(context, weights, rate)
            key = digest([tuned, data["prune"], data["distil"]])
            found.append(Training(step.name, key, seconds))
    return found


def _auto_size(recipe: Recipe) -> Overrides:
    """The precision auto keeps to the budget's size where it has none of its own."""
    stated, most = recipe.quantize.auto_size, recipe.budget.max_size
    if not any(map(is_auto, recipe.targets)) or stated is not None or most is None:
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
        limits = {"verify.max_drop": drop / 100}
    limits["distil.max_drop"] = drop / 100
    return {key: limit for key, limit in limits.items() if not is_stated(recipe, key)}
