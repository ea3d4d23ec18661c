"""Who makes what, where several processes run the same search. On one cache they take turns by
locks, and find the others' stages when they come to them. Through a study, study.py, they need no
common disk, and are told what others found."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgelm import __version__
from edgelm.compiler.cache import StageCache, digest
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune.axes import settings
from edgelm.compiler.tune.outcome import Outcome
from edgelm.compiler.tune.space import Model, Plan
from edgelm.runtime.progress import Progress
from edgelm.runtime.schema import encode

if TYPE_CHECKING:
    from edgelm.compiler.tune.study import Study

LOOK_S = 2.0  # between two looks at a study


@dataclass(frozen=True)
class Attempt:
    """A model to be made, or looked at after a part of its epochs."""

    model: Model
    part: Fraction = Fraction(1)

    @property
    def name(self) -> str:
        """`layers -1/2`, `layers -1/2, 1/9 of its epochs`"""
        return self.model.name if self.part == 1 else f"{self.model.name}, {part_name(self.part)}"


def part_name(part: Fraction) -> str:
    """`1/9 of its epochs`"""
    return f"{part} of its epochs"


class Searcher(Protocol):
    """A search that shares its work."""

    def tell(self, attempt: Attempt) -> Outcome:
        """What was found by an attempt that was made here."""
        ...

    def hear(self, attempt: Attempt, outcome: Outcome) -> None:
        """Take over what another process found."""
        ...

    def left_s(self) -> float:
        """Of the time budget."""
        ...


Turns = Callable[[Sequence[Attempt]], Generator[Attempt, None, None]]


def sharing(plan: Plan, progress: Progress, searcher: Searcher) -> Turns:
    """What gives out, of attempts, each that is to be made here, while no other process has it, and
    ends when all are made somewhere. Closed in between, the last one is free again. Raises
    RecipeError and StorageError for a study that cannot be used, and so does what it gives out."""
    recipe = plan.recipe
    url = recipe.budget.study
    if url is None:
        return partial(in_turns, plan.models[0].context.cache, recipe)
    from edgelm.compiler.tune.identity import study_name
    from edgelm.compiler.tune.storage import shown
    from edgelm.compiler.tune.study import Study

    name = study_name(plan)
    study = Study(
        url,
        name,
        settings([model.name for model in plan.models]),
        less=recipe.task == "text-generation",
        about={"edgelm": __version__, "model": Path(recipe.model).name},
    )
    progress.note(f"study {name} at {shown(url)}")
    return partial(in_study, study, progress, searcher)


def in_turns(
    cache: StageCache, recipe: Recipe, attempts: Sequence[Attempt]
) -> Generator[Attempt, None, None]:
    """Each attempt while no other process has it; those that another has come last."""
    waiting, wait = list(attempts), False
    while waiting:
        later: list[Attempt] = []
        for attempt in waiting:
            with taken(cache, ["model", encode(recipe), attempt.name], wait=wait) as is_mine:
                if is_mine:
                    yield attempt
                else:
                    later.append(attempt)
            wait = False
        wait = len(later) == len(waiting)  # all are with others
        waiting = later


def in_study(
    study: Study, progress: Progress, searcher: Searcher, attempts: Sequence[Attempt]
) -> Generator[Attempt, None, None]:
    """Each attempt that no other process has made, while none is at it. What this one has no time
    for is left to others."""
    waiting, said = list(attempts), ""
    while waiting:
        claims = study.claims()
        for attempt in list(waiting):
            claim = claims.get(attempt.name)
            if claim and claim.outcome:
                searcher.hear(attempt, claim.outcome)
                progress.note(f"{attempt.name}: made by {claim.worker}")
                waiting.remove(attempt)
        if searcher.left_s() <= 0:
            for attempt in waiting:
                attempt.model.close("untried", "no time was left")
            return
        free = [a for a in waiting if a.name not in claims]
        if not free:
            at = ", ".join(f"{a.name} ({claims[a.name].worker})" for a in waiting)
            if at not in ("", said):
                progress.note(f"others are at: {at}")
                said = at
            time.sleep(LOOK_S if waiting else 0)
            continue
        attempt = free[0]
        with study.claim(attempt.name, attempt.model.name) as trial:
            if trial is None:
                continue
            yield attempt
            untried = any(
                p.state == "untried" for p in attempt.model.points
            )  # others may have time
            if untried or study.succeed(trial, searcher.tell(attempt)):
                waiting.remove(attempt)


@contextmanager
def taken(cache: StageCache, what: object, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of `what` on the cache; yields whether it is held, True with `wait`."""
    from filelock import FileLock, Timeout

    folder = cache.root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{digest(what)}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
