"""Decoders: merged Hugging Face model -> a folder that ONNX Runtime GenAI runs as it is.

The graph is that of onnxruntime-genai's model builder in float32, made for CPUs: one
GroupQueryAttention a layer, which keeps keys and values in buffers that grow in place. Weights are
stored in fewer bits here. The builder's own int8 keeps a float32 table of embeddings beside the
product with the vocabulary (SmolLM2-135M: 267 MB instead of 154), its int4 is less exact.

One thing is added: the input `logits_from`, optional, which says from which token on logits are
wanted. That product is a fifth of the work of a small model, and a prompt needs it at its end only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgelm.runtime.errors import ModelError
from edgelm.targets.base import Lowered, LowerRequest
from edgelm.targets.onnx.blockwise import quantize_linears
from edgelm.targets.onnx.build import build
from edgelm.targets.onnx.fuse import constant
from edgelm.targets.onnx.genai_config import FILE_NAME, INPUTS, LOGITS_FROM, PAST
from edgelm.targets.onnx.half import halve_weights
from edgelm.targets.onnx.store import DATA_FILE, FILE

ENGINE = {"onnxruntime": ">=1.23"}

HEAD_MULTIPLE, TURNED_MULTIPLE = 8, 16
_COSINES = 7  # among the inputs of GroupQueryAttention

LOWERINGS: dict[str, Callable[[ir.Model], None]] = {  # a float graph -> one of the precision
    "fp32": lambda model: None,
    "fp16": lambda model: halve_weights(model, ir.DataType.FLOAT16),
    "bf16": lambda model: halve_weights(model, ir.DataType.BFLOAT16),
    "int8": lambda model: quantize_linears(model, 8),
    "int4": lambda model: quantize_linears(model, 4),
}
_BEHIND_THE_HEAD = ("Add", "Cast", "Div", "Mul", "Tanh", "Where")


def lower_decoder(request: LowerRequest) -> Lowered:
    """Write the variant into `request.folder`. Raises ModelError."""
    precision, folder = request.precision, request.folder
    if precision not in LOWERINGS:
        raise ModelError(
            f"the onnx target has no precision {precision!r} for text-generation",
            hint=f"it has {', '.join(LOWERINGS)}",
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        built = Path(scratch) / "built"
        request.report("building")
        build(request.recovered or request.model_dir, built)
        model = ir.load(built / FILE)
        _check_inputs(model.graph, request.model_dir)
        _check_heads(model.graph, built / FILE_NAME, request.model_dir)
        _trim_inputs(model.graph)
        request.report("converting")
        LOWERINGS[precision](model)
        choose_logits(model.graph)
        request.report("writing")
        common.ClearMetadataAndDocStringPass()(model)
        ir.save(model, folder / FILE, external_data=DATA_FILE)
        others = [p for p in sorted(built.iterdir()) if p.name not in (FILE, DATA_FILE)]
        for path in others:
            path.replace(folder / path.name)
    _limit_length(folder / FILE_NAME, request.text.max_tokens)
    files = (FILE, DATA_FILE, *(p.name for p in others))
    return Lowered(files=files, engine=dict(ENGINE), options={"decoder": True})


def choose_logits(graph: ir.Graph) -> None:
    """Let the product with the vocabulary begin at the token `logits_from`.

    An input with a default: who does not feed it, as ONNX Runtime GenAI, gets all logits."""
    head = next(v for v in graph.outputs if v.name == "logits").producer()
    while head is not None and head.op_type in _BEHIND_THE_HEAD:
        made = [v.producer() for v in head.inputs if v is not None and v.producer() is not None]
        head = made[0] if made else None
    hidden = None if head is None else head.inputs[0]
    if head is None or hidden is None or not head.op_type.startswith("MatMul"):
        raise ModelError("the built model's logits are no product with a vocabulary")
    start = constant(graph, LOGITS_FROM, np.array([-(2**31)], np.int64))
    graph.inputs.append(start)
    end = constant(graph, f"{LOGITS_FROM}.end", np.array([2**31 - 1], np.int64))
    axis = constant(graph, f"{LOGITS_FROM}.axis", np.array([1], np.int64))
    node = ir.node("Slice", [hidden, start, end, axis])
    wanted = node.outputs[0]
    wanted.type = hidden.type
    graph.insert_before(head, node)
    head.replace_input_with(0, wanted)
    for value in graph.outputs:
        if value.name == "logits" and value.shape is not None:
            value.shape = ir.Shape([value.shape[0], "logits_length", value.shape[2]])


def _check_inputs(graph: ir.Graph, model_dir: Path) -> None:
    """Refuse what decoder.py does not feed: recurrent states, explicit positions."""
    known = {INPUTS["input_ids"], INPUTS["attention_mask"]}
    prefix = PAST[0].partition(".")[0]
    unknown = [
        v.name for v in graph.inputs if v.name not in known and not str(v.name).startswith(prefix)
    ]
    if unknown:
        raise ModelError(
            f"{model_dir}: the onnx target cannot run this architecture: it needs {unknown[0]}"
        )


def why_not_heads(size: int, turned: int) -> str | None:
    """Why ONNX Runtime's GroupQueryAttention does not run heads of `size` values on CPUs, of which
    it turns the first `turned` (0 where it turns none) with the position; None where it does."""
    if size % HEAD_MULTIPLE:
        return f"heads of {size} values, no multiple of {HEAD_MULTIPLE}"
    if turned and size % TURNED_MULTIPLE:
        return f"heads of {size} values, no multiple of {TURNED_MULTIPLE}"
    if turned % TURNED_MULTIPLE:
        return (
            f"heads of which the first {turned} values turn with the position, no multiple of "
            f"{TURNED_MULTIPLE}"
        )
    return None


def _check_heads(graph: ir.Graph, config: Path, model_dir: Path) -> None:
    """Refuse heads that ONNX Runtime would only fail on when it runs. Raises ModelError."""
    size = json.loads(config.read_text(encoding="utf-8"))["model"]["decoder"]["head_size"]
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        turned, rotary = 0, node.attributes.get("do_rotary")
        if rotary is not None and rotary.as_int() == 1:
            cosines = node.inputs[_COSINES]  # (positions, half of what is turned), where told
            shape = None if cosines is None else cosines.shape
            half = size // 2 if shape is None else shape[-1]
            turned = 2 * half if isinstance(half, int) else size
        why = why_not_heads(size, turned)
        if why is not None:
            raise ModelError(
                f"{model_dir}: {why}: ONNX Runtime's attention on CPUs does not run them",
                hint="choose the gguf target, which takes heads of any even size",
            )


def _trim_inputs(graph: ir.Graph) -> None:
    """Drop empty inputs at the end, of which older ONNX Runtimes know fewer."""
    for node in graph:
        n = len(node.inputs)
        while n and node.inputs[n - 1] is None:
            n -= 1
        if n < len(node.inputs):
            node.resize_inputs(n)


def _limit_length(path: Path, max_tokens: int) -> None:
    """ONNX Runtime GenAI allocates its buffers for `max_length`: let that be the bundle's."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["search"]["max_length"] = min(max_tokens, config["model"]["context_length"])
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
