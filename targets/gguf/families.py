"""The model families this target lowers: config.json's model_type -> the function that plans it."""

from __future__ import annotations

from collections.abc import Callable

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.targets.gguf.bert import plan_bert
from edgelm.targets.gguf.modernbert import plan_modernbert
from edgelm.targets.gguf.plan import Config, Plan
from edgelm.targets.gguf.weights import Weights

FAMILIES: dict[str, Callable[[Config, Weights, Task], Plan]] = {
    "bert": plan_bert,
    "roberta": plan_bert,
    "xlm-roberta": plan_bert,
    "distilbert": plan_bert,
    "modernbert": plan_modernbert,
}


def make_plan(config: Config, weights: Weights, task: Task) -> Plan:
    """Plan the model. Raises ModelError for families and traits no llama.cpp graph computes."""
    family = config.values.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"config.json: model_type is {family!r}; the gguf target knows {', '.join(FAMILIES)}",
            hint="choose another target for this model, such as onnx",
        )
    if task.kind == "text-classification" and not task.labels:
        raise ModelError("a classifier needs labels, the task states none")
    return FAMILIES[family](config, weights, task)
