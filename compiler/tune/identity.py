"""What decides a search, wherever it runs: processes with the same share a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelm import __version__
from edgelm.compiler.cache import digest
from edgelm.compiler.chat.adapter import adapter_digest
from edgelm.compiler.converter import converter_inputs
from edgelm.compiler.machine import machine_id
from edgelm.compiler.passes.intake import find_model, read_source
from edgelm.compiler.pipeline import steps
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.tune.space import Plan
from edgelm.runtime.files import sha256_file
from edgelm.runtime.schema import encode

# keys that decide nothing of it, or name what differs in place but not in content
_PLACES = "model revision adapter data.train data.eval distil.student gguf.converter".split()
_FILES = (
    "prune.vocab_texts distil.unlabelled quantize.imatrix quantize.calibration_file "
    "budget.device_profile"
).split()
_NOTHING = (
    "origins output name version release threads cache_dir budget.study budget.time_budget"
).split()


def study_name(plan: Plan) -> str:
    """`edgelm-` and a digest: of the recipe, of the contents that it names, and of the points.
    Where latency or memory are bounded and measured, the machine is part of it, as figures of
    unlike machines cannot be held to one bound. Raises what reading the contents does."""
    recipe, first = plan.recipe, plan.models[0].context
    source = first.trimmed.original if first.trimmed else first.source
    assert source is not None
    found = digest(
        {
            "edgelm": __version__,
            "passes": {p.name: p.version for point in plan.points for p in steps(point.recipe).all},
            "recipe": _without_places(recipe),
            "contents": _contents(recipe),
            "model": source.digest,
            "data": first.data_digest,
            "points": [[p.name for p in model.points] for model in plan.models],
            "machine": machine_id() if plan.budget.has_costs and plan.profile is None else None,
        }
    )
    return f"edgelm-{found[:16]}"


def _without_places(recipe: Recipe) -> dict[str, Any]:
    data = encode(recipe)
    for key in (*_NOTHING, *_PLACES, *_FILES):
        section, _, name = key.rpartition(".")
        del (data[section] if section else data)[name]
    return data


def _contents(recipe: Recipe) -> dict[str, object]:
    adapter, student = recipe.adapter, recipe.distil.student
    found: dict[str, object] = {"converter": converter_inputs(recipe)}
    if adapter is not None:
        found["adapter"] = adapter_digest(Path(adapter))
    if student is not None:
        folder = find_model(replace(recipe, model=student, revision=None))
        found["student"] = read_source(folder).digest
    for key in _FILES:
        section, _, name = key.rpartition(".")
        stated = getattr(getattr(recipe, section), name)
        file = Path(stated or "").expanduser()
        found[key] = sha256_file(file) if file.is_file() else stated  # `auto` and `none` are none
    return found
