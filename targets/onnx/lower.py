"""The compile-time half of what answers whole texts: merged Hugging Face model -> `model.onnx`.

An encoder, or a decoder whose hidden states are pooled; text generation is genai.py's.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from edgelm.runtime.errors import ModelError
from edgelm.targets.base import AUTO, Lowered, LowerRequest
from edgelm.targets.causal import is_causal
from edgelm.targets.costs import Table
from edgelm.targets.onnx import PRECISIONS, SMOOTHED, auto
from edgelm.targets.onnx.blockwise import quantize_gated, quantize_whole_texts
from edgelm.targets.onnx.export import OPSET, export
from edgelm.targets.onnx.fuse import Choose, Weights, fuse
from edgelm.targets.onnx.half import halve_weights
from edgelm.targets.onnx.half_graph import halve_graph
from edgelm.targets.onnx.quantize import quantize_dynamic
from edgelm.targets.onnx.smooth import smooth
from edgelm.targets.onnx.static import quantize_static
from edgelm.targets.onnx.store import store

ENGINE = {"onnxruntime": ">=1.22"}
BLOCKWISE = ">=1.23"  # which has 8-bit products in blocks
_WEIGHTS: dict[str, Weights] = {"int8": "int8", "int8-static": "int8", "int4": "int4"}


def lower(request: LowerRequest) -> Lowered:
    """Write the variant into `request.folder`. Raises ModelError."""
    precision = request.precision
    if precision == AUTO:
        return _lower_auto(request)
    if precision not in PRECISIONS:
        raise ModelError(f"the onnx target has no precision {precision!r}")
    request.report("exporting")
    model = fused(request)
    engine = dict(ENGINE)
    if precision in _WEIGHTS and is_causal(request.model_dir):
        quantize_gated(model)
        engine["onnxruntime"] = BLOCKWISE
    if precision in SMOOTHED and request.quantization.smooth is not None:
        request.report("smoothing")
        if not smooth(model, request.calibration, request.quantization.smooth):
            raise ModelError(
                "smoothing: none of this model's linear layers stands behind what could be divided",
                hint="compile without quantize.smooth (--smooth)",
            )
    if precision == "fp16":
        # decoders have activations that no half float holds
        (halve_weights if is_causal(request.model_dir) else halve_graph)(model)
    elif precision == "int8":
        request.report("quantizing")
        quantize_dynamic(model, reduce_range=request.quantization.reduce_range)
    elif precision == "int4":
        request.report("quantizing")
        quantize_whole_texts(model)
        engine["onnxruntime"] = BLOCKWISE
    elif precision == "int8-static":
        request.report("calibrating")
        quantize_static(
            model,
            request.calibration,
            method=request.quantization.calibration,
            reduce_range=request.quantization.reduce_range,
        )
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
    fuse(model, weights or _WEIGHTS.get(request.precision, "float"))
    return model
