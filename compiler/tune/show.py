"""What a plan and its outcome look like: tables and a page for people, JSON for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgelm.compiler.recipe import dump_recipe
from edgelm.compiler.report.data import Search, SearchPoint
from edgelm.compiler.tune.budget import loss_of
from edgelm.compiler.tune.search import Found
from edgelm.compiler.tune.space import Plan, Point
from edgelm.runtime.errors import BudgetError
from edgelm.runtime.table import format_table, number

WORDS = {"open": "to be made", "made": "made"}  # of states without a reason


def plan_text(plan: Plan) -> str:
    """The points before anything is trained, and about how long they take."""
    rows = [
        [p.name, number(p.floor_bytes, 2, 1e-6), p.reason or WORDS[p.state]] for p in plan.points
    ]
    n = sum(p.state == "open" for p in plan.points)
    table = format_table(["point", "MB at least", "plan"], rows)
    return (
        f"{table}\n\n{len(plan.points)} points, {n} to be made; trainings to run: "
        f"{len(plan.trainings)}; about {minutes(plan.seconds)}{_budget_text(plan)}"
    )


def found_text(found: Found) -> str:
    """The table of points, the best first."""
    front = {id(p) for p in found.front}
    rows = [
        [f"{'*' if id(p) in front else ' '} {p.name}", *_cells(p), _outcome(found, p)]
        for p in ordered(found)
    ]
    unit = _drop_unit(found)
    head = ["  point", "MB", found.quality or "-", f"drop, {unit}", "ms", "memory MB", "outcome"]
    lines = [format_table(head, rows), "", "* no other is at least as good in everything"]
    if len(found.plan.machines) > 1:
        machines = "; ".join(found.plan.machines)
        lines.append(f"latency and memory, of several machines, are not compared: {machines}")
    if found.untried:
        lines.append(
            f"no time was left for {len(found.untried)} of {len(found.plan.points)} points"
        )
    return "\n".join(lines)


def found_json(found: Found) -> dict[str, Any]:
    """The same for machines."""
    front = {id(p) for p in found.front}
    return {
        "quality": found.quality,
        "reference": found.reference,
        "seconds": round(found.seconds, 1),
        "machines": found.plan.machines,
        "best": None if found.best is None else found.best.name,
        "points": [{**point_json(p), "front": id(p) in front} for p in ordered(found)],
    }


def found_report(found: Found) -> Search:
    """The same for the report."""
    front = {id(p) for p in found.front}
    limits = {b.figure: b.limit for b in found.plan.budget.bounds}
    return Search(
        quality=found.quality or "quality",
        drop_unit=_drop_unit(found),
        reference=found.reference,
        most_bytes=limits.get("size_bytes"),
        most_latency_ms=limits.get("latency_ms"),
        seconds=found.seconds,
        machines=tuple(found.plan.machines),
        points=tuple(
            SearchPoint(
                name=p.name,
                size_bytes=p.figures.size_bytes,
                quality=p.figures.metric,
                drop=p.figures.drop_points,
                latency_ms=p.figures.latency_ms,
                memory_bytes=p.figures.memory_bytes,
                outcome=_outcome(found, p),
                is_front=id(p) in front,
                is_best=p is found.best,
            )
            for p in ordered(found)
        ),
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for machines."""
    return {
        "trainings": len(plan.trainings),
        "seconds": round(plan.seconds, 1),
        "points": [point_json(p) for p in plan.points],
    }


def point_json(point: Point) -> dict[str, Any]:
    """One point."""
    return {
        "name": point.name,
        "model": point.model,
        "target": point.spec,
        "state": point.state,
        "reason": point.reason,
        "floor_bytes": point.floor_bytes,
        **asdict(point.figures),
        "measured_on": point.measured_on or None,
    }


def recipe_text(found: Found) -> str:
    """The recipe file of the best point."""
    assert found.best is not None
    said = ", ".join(
        f"{name} {cell}"
        for name, cell in zip(
            ("MB", found.quality, "drop", "ms", "memory MB"), _cells(found.best), strict=True
        )
    )
    return f"# {found.best.name}: {said}\n{dump_recipe(found.best.recipe)}"


def no_point_error(found: Found) -> BudgetError:
    """That nothing meets the budget, and what comes nearest."""
    near = [f"{p.name}: {p.reason}" for p in found.nearest]
    message = "no point meets the budget" + ("; the nearest are\n" if near else "")
    failed = sum(p.state == "failed" for p in found.plan.points)
    hint = "loosen the bounds"
    if failed:
        hint += f"; {failed} points failed, most by verification: see `verify`"
    if found.untried:
        hint += f"; {len(found.untried)} points were not tried: give more time with --time-budget"
    if any(p.state == "behind" for p in found.plan.points):
        hint += "; models were left behind half trained: --halving 1 trains them all in full"
    return BudgetError(message + "\n".join(near), hint=hint)


def ordered(found: Found) -> list[Point]:
    """All points: those that meet the budget, then by how near they are; the best first."""
    budget = found.plan.budget

    def key(p: Point) -> tuple[Any, ...]:
        metric = p.figures.metric
        known = metric is not None
        loss = 0.0 if metric is None else loss_of(found.quality, metric)
        return (
            p is not found.best,
            p.state != "meets",
            not known,
            *budget.distance(p.figures),
            loss,
        )

    return sorted(found.plan.points, key=key)


def minutes(seconds: float) -> str:
    """`40 s`, `12 min`"""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _outcome(found: Found, point: Point) -> str:
    return "best" if point is found.best else point.reason or point.state


def _drop_unit(found: Found) -> str:
    return "%" if found.quality == "perplexity" else "points"


def _cells(point: Point) -> list[str]:
    f = point.figures
    return [
        number(f.size_bytes, 2, 1e-6),
        number(f.metric, 4),
        number(f.drop_points, 2),
        number(f.latency_ms, 2),
        number(f.memory_bytes, 0, 1e-6),
    ]


def _budget_text(plan: Plan) -> str:
    if plan.budget.time_s is None:
        return ""
    return f", of which {minutes(plan.budget.time_s)} are given"
