"""The terms of `targets/curvature.py` by the names of a GGUF file, their rows as in the file.

A token table that is also the product with the vocabulary has a term for each use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.curvature import Loss, Term, collect
from edgelm.targets.gguf.activations import linear_layers
from edgelm.targets.gguf.families import make_plan
from edgelm.targets.gguf.plan import Config, Plan
from edgelm.targets.gguf.weights import Weights
from edgelm.targets.gguf.writer import interleave

_TABLE, _OUTPUT = "token_embd.weight", "output.weight"


def collect_curvature(
    model: Any, model_dir: Path, task: Task, text: TextLimits, losses: Iterable[Loss]
) -> dict[str, list[Term]]:
    """Run and differentiate each scalar of `model`, which was loaded from `model_dir`: the terms of
    each matrix, by its name and with its rows as in the file.

    Raises ModelError for a model that the gguf target does not know, and for values that are not
    finite."""
    plan, layers = _plan(model_dir, task, text), dict(linear_layers(model, model_dir, task, text))
    model.requires_grad_(False)
    generates = task.kind == "text-generation"
    if generates:
        layers[_OUTPUT] = model.get_output_embeddings()
    terms = collect(layers, {_TABLE: model.get_input_embeddings()}, losses)
    found = {name: [term] for name, term in terms.items()}
    if generates and all(move.name != _OUTPUT for move in plan.moves):
        found[_TABLE] += found.pop(_OUTPUT)
    return _as_in_file(plan, found)


def _plan(model_dir: Path, task: Task, text: TextLimits) -> Plan:
    values = json.loads((model_dir / "config.json").read_text("utf-8"))
    with Weights(model_dir) as weights:
        return make_plan(Config(values), weights, task, text)


def _as_in_file(plan: Plan, found: dict[str, list[Term]]) -> dict[str, list[Term]]:
    heads = {move.name: move.n_heads for move in plan.moves}
    for name, terms in found.items():
        if heads[name]:
            found[name] = [
                Term(t.moments, torch.from_numpy(_interleaved(t.rows.numpy(), heads[name])))
                for t in terms
            ]
    return found


def _interleaved(rows: np.ndarray[Any, Any], n_heads: int) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(interleave(rows, len(rows) // n_heads))
