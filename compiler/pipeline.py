"""`compile(recipe)`: the passes in their order, and a for loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgelm.compiler.cache import StageCache
from edgelm.compiler.chat.finetune import ChatFinetune
from edgelm.compiler.chat.measure import ChatMeasure
from edgelm.compiler.chat.merge import ChatMerge
from edgelm.compiler.chat.prepare import ChatPrepare
from edgelm.compiler.chat.reference import ChatReference
from edgelm.compiler.chat.student import ChatShrink, ChatTeach
from edgelm.compiler.chat.verify import ChatVerify
from edgelm.compiler.context import Context
from edgelm.compiler.hf import require_compile_extra
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.allocate import Floor, allocate_passes, is_auto
from edgelm.compiler.passes.finetune import Finetune
from edgelm.compiler.passes.gate import Gate
from edgelm.compiler.passes.imatrix import imatrix_passes
from edgelm.compiler.passes.intake import GGUF_SUFFIX, Intake
from edgelm.compiler.passes.lower import Lower, check_target
from edgelm.compiler.passes.measure import Measure
from edgelm.compiler.passes.merge import Merge
from edgelm.compiler.passes.pack import SUFFIX, Pack, check_output
from edgelm.compiler.passes.prepare import Prepare
from edgelm.compiler.passes.recover import Recover
from edgelm.compiler.passes.reference import Reference
from edgelm.compiler.passes.shrink import Shrink, is_shrunk
from edgelm.compiler.passes.sparsify import Sparsify
from edgelm.compiler.passes.teach import Teach
from edgelm.compiler.passes.trim import Trim
from edgelm.compiler.passes.unpack import Unpack
from edgelm.compiler.passes.verify import Verify
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.recover.settings import check_recovery, recovery
from edgelm.runtime.files import cache_home
from edgelm.runtime.manifest import Manifest
from edgelm.runtime.progress import Progress
from edgelm.runtime.trust.keys import SigningKey
from edgelm.targets.gguf.shards import stem_of


@dataclass(frozen=True)
class BundleReport:
    """What a compile made."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]

    @property
    def report_path(self) -> Path:
        """The page with plots."""
        return self.path / "report.html"


def compile(
    recipe: Recipe, progress: Progress | None = None, sign: SigningKey | None = None
) -> BundleReport:
    """Compile and write the bundle, signed by `sign` where that is given. Interrupted, it goes on
    where it was when called again.

    Raises RecipeError, ModelError, DataError, MissingExtra, TargetUnavailable, StorageError, and
    VerificationError when a variant is over its limits, BudgetError when nothing meets the
    recipe's budget; then nothing is written.
    """
    require_compile_extra()
    output = output_path(recipe)
    check_output(output)
    progress = progress or Progress("quiet")
    found = None
    if recipe.budget.has_bounds:
        from edgelm.compiler.tune import best_recipe

        recipe, found = best_recipe(recipe, progress)
    for spec in recipe.targets:
        check_target(recipe, spec)
    check_recovery(recipe)
    context = Context(recipe, StageCache(cache_root(recipe)), progress, search=found)
    pack = Pack(output, sign)
    done: list[str] = []
    for step in plan(recipe, pack):
        try:
            step.execute(context)
        except Exception as err:
            if sys.version_info >= (3, 11):
                err.add_note(f"in the pass {step.name!r}, after {', '.join(done) or 'none'}")
            raise
        done.append(step.name)
    assert pack.manifest is not None
    return BundleReport(output, pack.manifest, tuple(context.notes))


@dataclass(frozen=True)
class Passes:
    """The passes that differ by task."""

    prepare: Callable[[], Pass]
    finetune: Callable[[], Pass]
    merge: Callable[[], Pass]
    teach: Callable[[], Pass]
    shrink: Callable[[], Pass]
    reference: Callable[[], Pass]
    verify: Callable[[str], Pass]  # of one variant
    measure: Callable[[str], Pass]


# classification and embeddings, by encoders and decoders alike
WHOLE_TEXTS = Passes(Prepare, Finetune, Merge, Teach, Shrink, Reference, Verify, Measure)
GENERATION = Passes(
    ChatPrepare,
    ChatFinetune,
    ChatMerge,
    ChatTeach,
    ChatShrink,
    ChatReference,
    ChatVerify,
    ChatMeasure,
)


@dataclass(frozen=True)
class Steps:
    """The passes of a recipe, in order, by what is known after them."""

    source: list[Pass]  # data, task, and the shape of the model that is fine-tuned
    model: list[Pass]  # the model that is lowered, and the reference
    made: list[list[Pass]]  # by variant: [allocate], [recover], lower
    verify: list[Pass]
    measure: list[Pass]

    @property
    def verified(self) -> list[Pass]:
        """Each variant is made, and verified before the next is."""
        return [p for m, v in zip(self.made, self.verify, strict=True) for p in (*m, v)]

    @property
    def all(self) -> list[Pass]:
        """In the order in which they run."""
        return [*self.source, *self.model, *self.verified, *self.measure]


def steps(recipe: Recipe) -> Steps:
    """The passes up to measuring."""
    passes = GENERATION if recipe.task == "text-generation" else WHOLE_TEXTS
    lowers = [Lower(spec) for spec in recipe.targets]
    return Steps(
        source=[
            *([Unpack()] if recipe.model.endswith(GGUF_SUFFIX) else []),
            Intake(),
            passes.prepare(),
            *([Trim()] if recipe.prune.vocab else []),
        ],
        model=[
            passes.finetune(),
            passes.merge(),
            *([passes.teach(), passes.shrink()] if is_shrunk(recipe) else []),
            *([Sparsify()] if recipe.prune.sparsity is not None else []),
            passes.reference(),
            *imatrix_passes(recipe),
        ],
        made=[_making(recipe, lower) for lower in lowers],
        verify=[passes.verify(lower.variant) for lower in lowers],
        measure=[passes.measure(lower.variant) for lower in lowers],
    )


def _making(recipe: Recipe, lower: Lower) -> list[Pass]:
    how = recovery(recipe, lower.spec)
    recovered = [] if how == "none" else [Recover(lower, how)]
    return [*allocate_passes(lower.spec), *recovered, lower]


def plan(recipe: Recipe, pack: Pack) -> list[Pass]:
    """The passes of a recipe, in order. Every variant is verified before any is measured."""
    found = steps(recipe)
    floor = [Floor()] if any(map(is_auto, recipe.targets)) else []
    return [*found.source, *floor, *found.model, *found.verified, Gate(), *found.measure, pack]


def output_path(recipe: Recipe) -> Path:
    """Where the bundle goes."""
    if recipe.output:
        return Path(recipe.output).expanduser().resolve()  # a link stays, what it names is replaced
    name = Path(recipe.model.removeprefix("pkg:")).resolve().name
    stem = recipe.name or (stem_of(name) if name.endswith(GGUF_SUFFIX) else name)
    return Path(f"{stem}{SUFFIX}").resolve()


def cache_root(recipe: Recipe) -> Path:
    """Where finished stages are kept."""
    if recipe.cache_dir:
        return Path(recipe.cache_dir).expanduser()
    return cache_home()
