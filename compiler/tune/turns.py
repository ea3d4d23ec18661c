"""Who makes what, where several processes run the same search on one cache: each takes models that
no other has taken, and finds the others' stages when it comes to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgelm.compiler.cache import StageCache, digest
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune.plan import Model
from edgelm.runtime.schema import encode


def in_turns(cache: StageCache, recipe: Recipe, models: Sequence[Model]) -> Iterator[Model]:
    """Each model while no other process has it; those that another has come last."""
    waiting, wait = list(models), False
    while waiting:
        later: list[Model] = []
        for model in waiting:
            with taken(cache, ["model", encode(recipe), model.name], wait=wait) as is_mine:
                if is_mine:
                    yield model
                else:
                    later.append(model)
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
