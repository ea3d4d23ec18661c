"""The search for the best variant that meets a recipe's budget.

`axes.py` is the table of what may be varied. `plan.py` lays out the points (`space.py`) before
anything is trained: `sizes.py` knows the least size that each can have, `effort.py` about how long
it takes. `search.py` makes the points through the ordinary passes and their cache (`points.py`),
and leaves one as soon as it misses a bound for sure, by the rules of `judge.py`. `halving.py` says
how many trainings go how far, `drafts.py` what a short one shows. `turns.py` shares the work among
processes: among those with no common disk by `study.py`, in what `storage.py` opens; `identity.py`
says which search it is, `outcome.py` what they tell each other. `budget.py` says what is demanded,
`front.py` compares, `show.py` says what was found.
"""

from __future__ import annotations

from edgelm.compiler.recipe import Recipe
from edgelm.compiler.report.data import Search
from edgelm.compiler.tune.plan import make_plan
from edgelm.compiler.tune.search import Found, search
from edgelm.compiler.tune.show import found_report, no_point_error, plan_text
from edgelm.compiler.tune.space import Plan
from edgelm.runtime.progress import Progress


def best_recipe(recipe: Recipe, progress: Progress) -> tuple[Recipe, Search]:
    """The recipe, without a budget, of the best point, and how it was found. Raises BudgetError,
    and what passes do."""
    plan = make_plan(recipe, progress)
    progress.note(plan_text(plan))
    found = search(plan, progress)
    if found.best is None:
        raise no_point_error(found)
    return found.best.recipe, found_report(found)


__all__ = ["Found", "Plan", "best_recipe", "make_plan", "search"]
