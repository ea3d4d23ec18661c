"""The compile-time half of what answers whole texts: merged Hugging Face model -> `model.onnx`.

An encoder, or a decoder whose hidden states are pooled; text generation is genai.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgelm.runtime.errors import ModelError
from edgelm.targets.base import Lowered, LowerRequest
from edgelm.targets.causal import is_causal
from edgelm.targets.costs import Table
from edgelm.targets.onnx import auto
from edgelm.targets.onnx.blockwise import quantize_gated, quantize_whole_texts
from edgelm.targets.onnx.export import OPSET, export
from edgelm.targets.onnx.fuse import Choose, Weights, fuse
from edgelm.targets.onnx.half import halve_weights
from edgelm.targets.onnx.half_graph import halve_graph
from edgelm.targets.onnx.precisions import PRECISIONS
from edgelm.targets.onnx.quantize import quantize_dynamic
from edgelm.targets.onnx.smooth import smooth
from edgelm.targets.onnx.static import quantize_static
from edgelm.targets.onnx.store import store
from edgelm.targets.precision import AUTO, find

ENGINE = {"onnxruntime": ">=1.22"}
BLOCKWISE = ">=1.23"  # which has 8-bit products in blocks


@dataclass(frozen=True)
class _Lowering:
    """How a float graph becomes one of a precision."""

    run: Callable[[ir.Model, LowerRequest], None]
    weights: Weights = "float"
    engine: str = ENGINE["onnxruntime"]  # which has what `run` puts into the graph


def _keep(model: ir.Model, request: LowerRequest) -> None:
    pass


def _halve(model: ir.Model, request: LowerRequest) -> None:
    # decoders have activations that no half float holds
    (halve_weights if is_causal(request.model_dir) else halve_graph)(model)


def _quantize(model: ir.Model, request: LowerRequest) -> None:
    request.report("quantizing")
    quantize_dynamic(model, reduce_range=request.quantization.reduce_range)


def _quantize_static(model: ir.Model, request: LowerRequest) -> None:
    request.report("calibrating")
    quantize_static(
        model,
        request.calibration,
        method=request.quantization.calibration,
        reduce_range=request.quantization.reduce_range,
    )


def _quantize_blocks(model: ir.Model, request: LowerRequest) -> None:
    request.report("quantizing")
    quantize_whole_texts(model)


LOWERINGS = {
    "fp32": _Lowering(_keep),
    "fp16": _Lowering(_halve),
    "int8": _Lowering(_quantize, "int8"),
    "int8-static": _Lowering(_quantize_static, "int8"),
    "int4": _Lowering(_quantize_blocks, "int4", BLOCKWISE),
}


def lower(request: LowerRequest) -> Lowered:
    """Write the variant into `request.folder`. Raises ModelError."""
    precision = request.precision
    if precision == AUTO:
        return _lower_auto(request)
    row = find(PRECISIONS, precision)
    if row is None or precision not in LOWERINGS:
        raise ModelError(f"the onnx target has no precision {precision!r}")
    lowering = LOWERINGS[precision]
    request.report("exporting")
    model = fused(request)
    engine = {"onnxruntime": lowering.engine}
    if lowering.weights != "float" and is_causal(request.model_dir):
        quantize_gated(model)
        engine["onnxruntime"] = BLOCKWISE
    if row.is_smoothed and request.quantization.smooth is not None:
        request.report("smoothing")
        if not smooth(model, request.calibration, request.quantization.smooth):
            raise ModelError(
                "smoothing: none of this model's linear layers stands behind what could be divided",
                hint="compile without quantize.smooth (--smooth)",
            )
    lowering.run(model, request)
    return _write(model, request, engine)


def _lower_auto(request: LowerRequest) -> Lowered:
    """Each matrix in its type of `request.types`."""
    request.report("exporting")
    names = auto.Names(request.recovered or request.model_dir, request.task)
    model = fused(request, auto.choose_fusion(names, request.types))
    request.report("quantizing")
    reduce_range = request.quantization.reduce_range
    like = auto.quantize_auto(model, names, request.types, reduce_range=reduce_range)
    has_blocks = not auto.BLOCKS.keys().isdisjoint(request.types.values())
    made = _write(model, request, {"onnxruntime": BLOCKWISE} if has_blocks else dict(ENGINE))
    return replace(made, types=dict(request.types), graded_as=like)


def tabulate(request: LowerRequest) -> Table:
    """What each type of each matrix takes and costs. Raises ModelError."""
    request.report("exporting")
    return auto.tabulate(fused(request, "int4"), request)


def _write(model: ir.Model, request: LowerRequest, engine: dict[str, str]) -> Lowered:
    request.report("writing")
    inputs = [value.name for value in model.graph.inputs]
    files = store(model, request.folder)
    return Lowered(files=files, engine=engine, options={"opset": OPSET, "inputs": inputs})


def fused(request: LowerRequest, weights: Weights | Choose | None = None) -> ir.Model:
    """The graph whose weights are then put into the precision, or into what `weights` says. Raises
    ModelError."""
    type_ids = request.task.pair and request.text.type_ids
    model = export(request.recovered or request.model_dir, request.task, type_ids=type_ids)
    fuse(model, weights or LOWERINGS[request.precision].weights)
    return model
