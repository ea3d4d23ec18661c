"""The compile-time half: merged Hugging Face model -> `model.onnx`."""

from __future__ import annotations

from edgelm.runtime.errors import ModelError
from edgelm.targets.base import Lowered, LowerRequest
from edgelm.targets.onnx import PRECISIONS
from edgelm.targets.onnx.export import OPSET, export
from edgelm.targets.onnx.fuse import fuse
from edgelm.targets.onnx.half import halve_weights
from edgelm.targets.onnx.quantize import quantize_dynamic
from edgelm.targets.onnx.static import quantize_static
from edgelm.targets.onnx.store import store

ENGINE = {"onnxruntime": ">=1.22"}


def lower(request: LowerRequest) -> Lowered:
    """Write the variant into `request.folder`. Raises ModelError."""
    precision = request.precision
    if precision not in PRECISIONS:
        raise ModelError(f"the onnx target has no precision {precision!r}")
    request.report("exporting")
    type_ids = request.task.pair and request.text.type_ids
    model = export(request.model_dir, request.task, type_ids=type_ids)
    fuse(model, quantizable=precision.startswith("int8"))
    if precision == "fp16":
        halve_weights(model)
    elif precision == "int8":
        request.report("quantizing")
        quantize_dynamic(model, reduce_range=request.quantization.reduce_range)
    elif precision == "int8-static":
        request.report("calibrating")
        quantize_static(
            model,
            request.calibration,
            method=request.quantization.calibration,
            reduce_range=request.quantization.reduce_range,
        )
    request.report("writing")
    inputs = [value.name for value in model.graph.inputs]
    files = store(model, request.folder)
    return Lowered(files=files, engine=dict(ENGINE), options={"opset": OPSET, "inputs": inputs})
