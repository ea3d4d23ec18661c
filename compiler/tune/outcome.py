"""What a process that tried a model tells the others of it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.compiler.tune.budget import Figures
from edgelm.compiler.tune.space import Point, State


@dataclass(frozen=True)
class PointOutcome:
    """What is known of one point."""

    state: State
    reason: str
    figures: Figures
    measured_on: str  # the machine that latency and memory are of, if any

    @staticmethod
    def of(point: Point) -> PointOutcome:
        """As it stands."""
        return PointOutcome(point.state, point.reason, point.figures, point.measured_on)

    def take_over(self, point: Point) -> None:
        """Make the point stand so."""
        point.state, point.reason = self.state, self.reason
        point.figures, point.measured_on = self.figures, self.measured_on


@dataclass(frozen=True)
class Outcome:
    """What is known of one model, after all of its epochs or a part."""

    quality: str  # name of the figure that models are compared by; empty where none was made
    reference: float | None  # of the model before it is quantized, after all its epochs
    promise: float | None  # after a part of them
    points: dict[str, PointOutcome]  # by TARGET:PRECISION

    def best(self, *, less: bool) -> float | None:
        """The best quality of its variants; with `less`, less is better."""
        known = [p.figures.metric for p in self.points.values() if p.figures.metric is not None]
        return (min if less else max)(known, default=None)
