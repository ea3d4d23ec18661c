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

from edgelm.runtime.errors import MissingExtra, TargetUnavailable

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
        if _problem() is None:
            from edgelm.targets.onnx.engine import CUDA, providers

            devices = ("cpu", "cuda") if CUDA in providers() else devices
        return Capabilities(
            tasks=("text-classification", "feature-extraction"),
            precisions=PRECISIONS,
            devices=devices,
        )

    def available(self) -> str | None:
        """None when ONNX Runtime loads here, else the reason with the cure."""
        problem = _problem()
        return None if problem is None else f"{problem.message}; {problem.hint}"

    def open(self, folder: Path, variant: Variant, task: Task, options: EngineOptions) -> Session:
        problem = _problem()
        if problem is not None:
            raise problem
        from edgelm.targets.onnx.engine import OnnxSession

        return OnnxSession(folder, variant, task, options)

    def lower(self, request: LowerRequest) -> Lowered:
        problem = _problem()
        if problem is not None:
            raise problem
        for package in _COMPILE_PACKAGES:
            if not _is_installed(package):
                raise MissingExtra(package, "compile")
        from edgelm.targets.onnx.lower import lower

        return lower(request)


def _problem() -> TargetUnavailable | None:
    """Why ONNX Runtime cannot be used here."""
    try:
        if not _is_installed("onnxruntime"):
            return MissingExtra("onnxruntime", "onnx")
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018 a folder left by pip imports too
    except (ImportError, OSError, AttributeError, ValueError) as err:
        said = (str(err).splitlines() or [type(err).__name__])[0]
        return TargetUnavailable(
            f"onnxruntime cannot be loaded: {said}",
            hint="reinstall it with: pip install --force-reinstall --no-deps onnxruntime",
        )
    return None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


TARGET = OnnxTarget()
