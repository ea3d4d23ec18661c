"""The model families this target lowers: config.json's model_type -> what plans it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TaskKind, TextLimits
from edgelm.targets.gguf.bert import plan_bert
from edgelm.targets.gguf.decoders import DECODERS
from edgelm.targets.gguf.llama import plan_llama
from edgelm.targets.gguf.modernbert import plan_modernbert
from edgelm.targets.gguf.plan import Config, Plan
from edgelm.targets.gguf.weights import Weights

ENCODERS: dict[str, Callable[[Config, Weights, Task], Plan]] = {
    "bert": plan_bert,
    "roberta": plan_bert,
    "xlm-roberta": plan_bert,
    "distilbert": plan_bert,
    "modernbert": plan_modernbert,
}


def known_families(task: Task) -> Collection[str]:
    """The values of model_type that can be planned for the task."""
    found: dict[TaskKind, tuple[str, ...]] = {
        "text-classification": tuple(ENCODERS),
        "feature-extraction": (*ENCODERS, *DECODERS),
        "text-generation": tuple(DECODERS),
    }
    return found[task.kind]


def make_plan(config: Config, weights: Weights, task: Task, text: TextLimits) -> Plan:
    """Plan the model. Raises ModelError for families and traits no llama.cpp graph computes."""
    family = str(config.values.get("model_type"))
    known = known_families(task)
    if family not in known:
        raise ModelError(
            f"config.json: model_type is {family!r}; for {task.kind} the gguf target knows "
            f"{', '.join(known)}",
            hint="let llama.cpp's own script convert it, with --converter PATH (a checkout of "
            "llama.cpp), or choose another target, such as onnx",
        )
    if family in DECODERS:
        return plan_llama(DECODERS[family], config, weights, task, text)
    if task.kind == "text-classification" and not task.labels:
        raise ModelError("a classifier needs labels, the task states none")
    return ENCODERS[family](config, weights, task)
