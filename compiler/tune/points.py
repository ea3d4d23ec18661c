"""What is done for one point by the ordinary passes: its variant is lowered, verified, measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgelm.compiler.context import Context, VariantState
from edgelm.compiler.machine import machine_name
from edgelm.compiler.packing import manifest_variant
from edgelm.compiler.passes import Pass
from edgelm.compiler.pipeline import steps
from edgelm.compiler.tune.budget import Figures, latency_ms, quality_value
from edgelm.compiler.tune.space import Point
from edgelm.runtime.errors import TargetUnavailable
from edgelm.runtime.manifest import Measured
from edgelm.runtime.profile import DeviceProfile


def make_model(passes: Sequence[Pass], context: Context) -> dict[str, float]:
    """Run the passes to the model that is lowered; the seconds of those that were not kept."""
    spent: dict[str, float] = {}
    for step in passes:
        began, was_kept = time.monotonic(), is_kept(step, context)
        step.execute(context)
        if not was_kept:
            spent[step.name] = time.monotonic() - began
    return spent


def is_kept(step: Pass, context: Context) -> bool:
    """Whether the pass has nothing to do, or its stage is kept."""
    inputs = step.inputs(context)
    if inputs is None:
        return True
    key = context.cache.key(step.name, step.version, inputs)
    return context.cache.find(step.name, key) is not None


def lower(point: Point, context: Context) -> None:
    """Its size. Raises what passes do."""
    for step in steps(point.recipe).made[0]:
        step.execute(context)
    size = manifest_variant(context.variants[point.variant]).size_bytes
    point.figures = Figures(size_bytes=size)


def verify(point: Point, context: Context, quality: str) -> VariantState:
    """Its quality. Raises what passes do."""
    steps(point.recipe).verify[0].execute(context)
    state = context.variants[point.variant]
    value = quality_value(quality, state.metrics, state.parity)
    point.figures = replace(point.figures, metric=value)
    return state


def measure(point: Point, context: Context, profile: DeviceProfile | None) -> None:
    """Its latency and memory, of this machine or from the profile of another; a point that cannot
    be measured is closed."""
    state = context.variants[point.variant]
    found: Measured | None
    if profile is not None:
        recipe, call, variant = point.recipe, point.recipe.measure, manifest_variant(state)
        found = profile.find(recipe.task, variant, call.batch, call.tokens, recipe.threads)
    else:
        try:
            steps(point.recipe).measure[0].execute(context)
        except TargetUnavailable as err:
            point.close("failed", err.message)
            return
        found, point.measured_on = state.measured, machine_name()
    if found is not None:
        point.figures = replace(
            point.figures, latency_ms=latency_ms(found), memory_bytes=found.memory_bytes
        )
