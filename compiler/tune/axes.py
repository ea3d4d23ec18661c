"""What a search may vary, as a table: to add an axis, add a row.

A point takes one value of each axis that fits. A key that the recipe states is not varied, but for
`targets`, of which each stated one is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.compiler.demands import Varied
from edgelm.compiler.options import leaves
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.manifest import TaskKind
from edgelm.targets import TARGETS, all_precisions
from edgelm.targets.precision import GRADES, Precision

Overrides = dict[str, Any]  # recipe key -> value


@dataclass(frozen=True)
class Axis:
    """One thing that a search varies, before variants are made."""

    name: Varied
    values: dict[str, Overrides]  # by name, from nothing left out to most left out
    fits: Callable[[Recipe, bool], bool]  # (recipe, whether the model is a decoder)

    @property
    def keys(self) -> set[str]:
        """The recipe keys that it sets."""
        return {key for value in self.values.values() for key in value}


def _encoder_with_texts(recipe: Recipe, decoder: bool) -> bool:
    return not decoder and recipe.data.train is not None


def _has_texts(recipe: Recipe, decoder: bool) -> bool:
    return recipe.data.train is not None


AXES = (
    Axis(
        "vocabulary",
        {
            "whole": {},
            "used": {"prune.vocab": True},
            "4000": {"prune.vocab": True, "prune.vocab_size": 4000},
            "2000": {"prune.vocab": True, "prune.vocab_size": 2000},
        },
        _encoder_with_texts,
    ),
    Axis(
        "layers",
        {"all": {}, "-1/3": {"prune.layers": 1 / 3}, "-1/2": {"prune.layers": 0.5}},
        _encoder_with_texts,
    ),
    Axis("ffn", {"all": {}, "-1/2": {"prune.ffn": 0.5}}, _encoder_with_texts),
    Axis("recovery", {"auto": {}, "trained": {"recover.method": "train"}}, _has_texts),
)
MOST_CHANGES = 2  # axes that are not at their first value, in one model


def targets(recipe: Recipe) -> list[str]:
    """The targets to try: the recipe's own, or those that the tables of precisions offer."""
    free = "targets" in recipe.budget.vary and not is_stated(recipe, "targets")
    return searched(recipe.task) if free else list(recipe.targets)


def searched(task: TaskKind) -> list[str]:
    """The variants of each model, from the closest to the reference to the smallest: by grade, then
    target, then bits."""
    rows = [(spec, row) for spec, row in all_precisions() if task in row.searched]
    places = {target: i for i, target in enumerate(TARGETS)}

    def rank(item: tuple[str, Precision]) -> tuple[int, int, float]:
        spec, row = item
        assert row.grade is not None and row.least_bits is not None, spec
        return GRADES.index(row.grade), places[spec.partition(":")[0]], -row.least_bits

    return [spec for spec, _ in sorted(rows, key=rank)]


def models(recipe: Recipe, *, decoder: bool) -> Iterator[tuple[str, Overrides, tuple[int, ...]]]:
    """Name, overrides and place (of the value of each axis) of each model to try, the one with
    nothing left out first, then the gentler before the harsher."""
    fitting = [
        [(f"{axis.name} {name}", overrides) for name, overrides in axis.values.items()]
        for axis in AXES
        if axis.name in recipe.budget.vary
        and axis.fits(recipe, decoder)
        and not any(is_stated(recipe, key) for key in axis.keys)
    ]
    places = itertools.product(*(range(len(values)) for values in fitting))
    for place in sorted(places, key=lambda place: (sum(place), place)):
        if sum(i > 0 for i in place) > MOST_CHANGES:
            continue
        taken = [values[i] for values, i in zip(fitting, place, strict=True)]
        name = ", ".join(name for name, overrides in taken if overrides)
        changes = {key: value for _, overrides in taken for key, value in overrides.items()}
        yield name or "whole model", changes, place


def settings(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Of models by such names the value of each axis that any of them varies."""
    said = {name: dict(part.split(" ", 1) for part in name.split(", ")) for name in names}
    varied = [axis for axis in AXES if any(axis.name in values for values in said.values())]
    return {
        name: {axis.name: values.get(axis.name, next(iter(axis.values))) for axis in varied}
        for name, values in said.items()
    }


def is_stated(recipe: Recipe, key: str) -> bool:
    """Whether the user chose the value of `key`: in a file, by a flag, or in Python."""
    if recipe.origins.get(key, "default") != "default":
        return True
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value != next(leaf.default for leaf in leaves(Recipe) if leaf.key == key)
