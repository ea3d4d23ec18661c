"""The ONNX target: encoders as one ONNX file, run by ONNX Runtime on CPUs and NVIDIA GPUs.

    lower.py      the compile-time half: export, fuse, then quantize, static or half, then store
    engine.py     the run-time half; it imports onnxruntime and numpy, nothing else

The file's contract: inputs `input_ids`, `attention_mask` and, where the model reads it,
`token_type_ids`, each int64 (B, T) padded on the right; one float32 output, `logits` (B, C) or
`embedding` (B, H), pooled and not normalized.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.runtime.errors import MissingExtra

if TYPE_CHECKING:
    from edgelm.runtime.engine import EngineOptions, Session
    from edgelm.runtime.manifest import Task, Variant
    from edgelm.targets.base import Capabilities, Lowered, LowerRequest

PRECISIONS = ("fp32", "fp16", "int8", "int8-static")
_COMPILE_PACKAGES = ("torch", "transformers", "onnx", "onnxscript")


class OnnxTarget:
    """Lowers to one ONNX file, opens it with ONNX Runtime."""

    name = "onnx"
    engine_package = "onnxruntime"
    lower_packages = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")

    def capabilities(self) -> Capabilities:
        from edgelm.targets.base import Capabilities

        devices = ("cpu",)
        if _is_installed("onnxruntime"):
            from edgelm.targets.onnx.engine import CUDA, providers

            devices = ("cpu", "cuda") if CUDA in providers() else devices
        return Capabilities(
            tasks=("text-classification", "feature-extraction"),
            precisions=PRECISIONS,
            devices=devices,
        )

    def available(self) -> str | None:
        if _is_installed("onnxruntime"):
            return None
        missing = MissingExtra("onnxruntime", "onnx")
        return f"{missing.message}; {missing.hint}"

    def open(self, folder: Path, variant: Variant, task: Task, options: EngineOptions) -> Session:
        if not _is_installed("onnxruntime"):
            raise MissingExtra("onnxruntime", "onnx")
        from edgelm.targets.onnx.engine import OnnxSession

        return OnnxSession(folder, variant, task, options)

    def lower(self, request: LowerRequest) -> Lowered:
        if not _is_installed("onnxruntime"):
            raise MissingExtra("onnxruntime", "onnx")
        for package in _COMPILE_PACKAGES:
            if not _is_installed(package):
                raise MissingExtra(package, "compile")
        from edgelm.targets.onnx.lower import lower

        return lower(request)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


TARGET = OnnxTarget()
