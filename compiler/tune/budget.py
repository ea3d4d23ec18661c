"""What a recipe's budget demands, and how far figures are from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgelm.compiler.recipe import Recipe
from edgelm.compiler.units import BYTES, LATENCY, TIME, parse
from edgelm.runtime.manifest import Measured, Parity, Task
from edgelm.runtime.metrics import main_metric


@dataclass(frozen=True)
class Figures:
    """What is known of a point; None where it is not, or not yet."""

    size_bytes: int | None = None
    metric: float | None = None
    drop_points: float | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Bound:
    """One demand."""

    name: str  # in the recipe's `budget`
    figure: str  # of Figures
    limit: float
    unit: str
    scale: float = 1.0  # of the figure, to be shown in `unit`
    least: bool = False  # whether the limit is the least value, in place of the largest

    def excess(self, figures: Figures) -> float | None:
        """By how much of the limit (points: of at least one point) the figure is over it; 0 when
        it is met, None when the figure is not known."""
        value: float | None = getattr(figures, self.figure)
        if value is None or math.isnan(value):
            return None
        over = self.limit - value if self.least else value - self.limit
        unit = max(self.limit, 1.0) if self.figure == "drop_points" else self.limit
        return max(0.0, over / unit)

    def says(self, figures: Figures) -> str:
        """`size 9.31 MB > 8 MB`"""
        value = getattr(figures, self.figure)
        sign = "<" if self.least else ">"
        what = self.name.partition("_")[2]
        return (
            f"{what} {value * self.scale:.4g}{self.unit} {sign} {self.limit * self.scale:.4g}"
            f"{self.unit}"
        )


@dataclass(frozen=True)
class Budget:
    """All demands of a recipe."""

    bounds: tuple[Bound, ...]
    time_s: float | None

    def misses(self, figures: Figures) -> tuple[str, ...]:
        """The demands that the figures are known to miss."""
        return tuple(b.says(figures) for b in self.bounds if b.excess(figures))

    def is_met(self, figures: Figures) -> bool:
        """Whether all is known that is demanded, and within its bounds."""
        return all(b.excess(figures) == 0 for b in self.bounds)

    def unknown(self, figures: Figures) -> tuple[str, ...]:
        """The demands whose figures are not known."""
        names = (b.name.partition("_")[2] for b in self.bounds if b.excess(figures) is None)
        return tuple(names)

    def distance(self, figures: Figures) -> tuple[int, float]:
        """How far from meeting it: demands not known, and the sum of what is over."""
        over = [b.excess(figures) for b in self.bounds]
        return sum(e is None for e in over), sum(e or 0.0 for e in over)

    def has(self, name: str) -> bool:
        """Whether there is a demand of that name."""
        return any(b.name == name for b in self.bounds)

    @property
    def has_costs(self) -> bool:
        """Whether there is a demand that is known once a variant was measured."""
        return self.has("max_latency") or self.has("max_memory")


def read_budget(recipe: Recipe) -> Budget:
    """The budget of a recipe, whose rules have been checked."""
    b = recipe.budget
    found: list[Bound] = []

    def add(
        text: str | None, units: Mapping[str, float], make: Callable[[str, float], Bound], name: str
    ) -> None:
        if text is not None:
            found.append(make(name, parse(f"budget.{name}", text, units)))

    add(b.max_size, BYTES, lambda n, v: Bound(n, "size_bytes", v, " MB", 1e-6), "max_size")
    add(b.max_latency, LATENCY, lambda n, v: Bound(n, "latency_ms", v, " ms"), "max_latency")
    add(b.max_memory, BYTES, lambda n, v: Bound(n, "memory_bytes", v, " MB", 1e-6), "max_memory")
    if b.max_drop is not None:
        unit = " %" if recipe.task == "text-generation" else " points"
        found.append(Bound("max_drop", "drop_points", b.max_drop, unit))
    if b.min_metric is not None:
        found.append(Bound("min_metric", "metric", b.min_metric, "", least=True))
    seconds = None if b.time_budget is None else parse("budget.time_budget", b.time_budget, TIME)
    return Budget(tuple(found), seconds)


def quality_name(task: Task, reference: dict[str, float]) -> str:
    """The figure that models of the task are compared by; `reference` are the reference's metrics.

    That is the task's metric, where the data can tell it; of embeddings without scores the cosine
    with the reference's; of generation perplexity, of which less is better."""
    if task.kind == "text-generation":
        return "perplexity"
    return main_metric(task) if main_metric(task) in reference else "cosine"


def quality_value(name: str, metrics: dict[str, float], parity: Parity | None) -> float | None:
    """That figure, of a variant or (without parity) of a reference."""
    if name == "cosine":
        return 1.0 if parity is None else parity.mean_cosine
    return metrics.get(name)


def drop_points(name: str, value: float, reference: float) -> float:
    """The loss against the reference, in points; of perplexity in per cent."""
    return 100 * (value / reference - 1) if name == "perplexity" else 100 * (reference - value)


def loss_of(name: str, value: float) -> float:
    """Less is better."""
    return value if name == "perplexity" else -value


def latency_ms(measured: Measured) -> float | None:
    """Of one call; generation: to the first token."""
    found = measured.latency_ms_p50
    return measured.first_token_ms if found is None else found
