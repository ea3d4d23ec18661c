"""Who makes what, where several processes run the same search on one cache: each takes models that
no other has taken, and finds the others' stages when it comes to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from edgelm.compiler.cache import StageCache, digest
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune.space import Model
from edgelm.runtime.schema import encode


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


def in_turns(cache: StageCache, recipe: Recipe, attempts: Sequence[Attempt]) -> Iterator[Attempt]:
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
