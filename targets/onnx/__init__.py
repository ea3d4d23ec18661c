"""The ONNX target: whole texts on CPUs and NVIDIA GPUs, generation on CPUs, run by ONNX Runtime.

Classification and embeddings, by encoders, and by decoders that give vectors:
    lower.py      the compile-time half: export, fuse, quantize (by quantize, static, blockwise or
                  half; smooth before), store
    engine.py     the run-time half (with providers, binding); it imports onnxruntime and numpy,
                  nothing else
Generation:
    genai.py      the compile-time half, on onnxruntime-genai's model builder
    decoder.py    the run-time half, on plain onnxruntime too

The contract of a whole text's file: inputs `input_ids`, `attention_mask` and, where the model reads
it, `token_type_ids`, each int64 (B, T) padded on the right; one float32 output, `logits` (B, C) or
`embedding` (B, H), pooled and not normalized. That of a generator's folder is ONNX Runtime GenAI's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.runtime.errors import MissingExtra, TargetUnavailable
from edgelm.targets.onnx.precisions import KINDS, PRECISIONS

if TYPE_CHECKING:
    from edgelm.runtime.engine import DecoderOptions, DecoderSession, EngineOptions, Session
    from edgelm.runtime.manifest import Task, TextLimits, Variant
    from edgelm.targets.base import Capabilities, Lowered, LowerRequest
    from edgelm.targets.costs import Table
    from edgelm.targets.curvature import Loss
    from edgelm.targets.grid import Grids


class OnnxTarget:
    """Lowers to one ONNX file, opens it with ONNX Runtime."""

    name = "onnx"
    precisions = PRECISIONS
    engine_package = "onnxruntime"
    lower_packages = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    decoder_packages = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai")

    def capabilities(self) -> Capabilities:
        from edgelm.targets.base import Capabilities

        devices: tuple[str, ...] = ("cpu",)
        missing: dict[str, str] = {}
        if _problem() is None:
            from edgelm.runtime.engine import GPU_DEVICES
            from edgelm.targets.onnx.providers import missing_devices

            missing = missing_devices()
            devices += tuple(device for device in GPU_DEVICES if device not in missing)
        return Capabilities(
            devices,
            absent=missing,
            auto_gpu=True,
            kinds=KINDS,
            task_devices={"text-generation": ("cpu",)},
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

    def open_decoder(
        self, folder: Path, variant: Variant, text: TextLimits, options: DecoderOptions
    ) -> DecoderSession:
        problem = _problem()
        if problem is not None:
            raise problem
        from edgelm.targets.onnx.decoder import OnnxDecoder

        return OnnxDecoder(folder, variant, text, options)

    def lower(self, request: LowerRequest) -> Lowered:
        problem = _problem()
        if problem is not None:
            raise problem
        from edgelm.targets.base import missing

        generates = request.task.kind == "text-generation"
        for package in self.decoder_packages if generates else self.lower_packages:
            if not _is_installed(package.replace("-", "_")):
                raise missing(package)
        if generates:
            from edgelm.targets.onnx.genai import lower_decoder

            return lower_decoder(request)
        from edgelm.targets.onnx.lower import lower

        return lower(request)

    def grids(self, request: LowerRequest) -> Grids:
        from edgelm.targets.onnx.recover import grids

        return grids(request)

    def weigh(self, model: Any, request: LowerRequest, losses: Iterable[Loss], path: Path) -> None:
        from edgelm.targets.onnx.curvature import write_terms

        write_terms(path, model, losses)

    def tabulate(self, request: LowerRequest) -> Table:
        from edgelm.targets.onnx.lower import tabulate

        return tabulate(request)


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
