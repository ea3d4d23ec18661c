"""The GGUF target: llama.cpp on CPUs, and on GPUs where its library was built for one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.runtime.engine import DecoderOptions, DecoderSession, EngineOptions, Session
from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.manifest import Task, TextLimits, Variant
from edgelm.targets.base import Capabilities, Lowered, LowerRequest
from edgelm.targets.gguf.precisions import KINDS, PRECISIONS
from edgelm.targets.precision import Precision

if TYPE_CHECKING:
    from edgelm.targets.costs import Table
    from edgelm.targets.curvature import Loss
    from edgelm.targets.grid import Grids


class GgufTarget:
    """One row of the table of targets."""

    name = "gguf"
    precisions: tuple[Precision, ...] = PRECISIONS
    engine_package = "llama-cpp-python"
    lower_packages = ("gguf", "llama-cpp-python")
    decoder_packages = lower_packages

    def capabilities(self) -> Capabilities:
        devices: tuple[str, ...] = ("cpu",)
        missing: dict[str, str] = {}
        if self.available() is None:
            from edgelm.targets.gguf import bindings
            from edgelm.targets.gguf.engine import absent

            missing = absent(bindings.load())
            devices += () if "cuda" in missing else ("cuda",)
        return Capabilities(devices, absent=missing, guesses=True, kinds=KINDS)

    def available(self) -> str | None:
        """None when llama.cpp's library loads here, else the reason with the cure."""
        from edgelm.targets.gguf import bindings

        try:
            bindings.load()
        except EdgelmError as err:
            return f"{err.message}; {err.hint}"
        return None

    def open(self, folder: Path, variant: Variant, task: Task, options: EngineOptions) -> Session:
        """Open the variant's files. Raises TargetUnavailable, MissingExtra, BundleError."""
        from edgelm.targets.gguf.engine import GgufSession

        return GgufSession(folder, variant, task, options)

    def open_decoder(
        self, folder: Path, variant: Variant, text: TextLimits, options: DecoderOptions
    ) -> DecoderSession:
        """Open the files of a generation variant. Raises as `open` does."""
        from edgelm.targets.gguf.decoder import GgufDecoder

        return GgufDecoder(folder, variant, text, options)

    def lower(self, request: LowerRequest) -> Lowered:
        """Write the variant's files. Raises ModelError, MissingExtra."""
        from edgelm.targets.gguf.lower import lower

        return lower(request)

    def grids(self, request: LowerRequest) -> Grids:
        """What the variant's matrices can hold. Raises ModelError, MissingExtra."""
        from edgelm.targets.gguf.recover import grids

        return grids(request)

    def weigh(self, model: Any, request: LowerRequest, losses: Iterable[Loss], path: Path) -> None:
        """Write what errors of the model's matrices cost. Raises ModelError."""
        from edgelm.targets.curvature import write_curvature
        from edgelm.targets.gguf.curvature import collect_curvature

        found = collect_curvature(model, request.model_dir, request.task, request.text, losses)
        write_curvature(path, found)

    def tabulate(self, request: LowerRequest) -> Table:
        """What each type of each matrix takes and costs. Raises ModelError, MissingExtra."""
        from edgelm.targets.gguf.lower import tabulate

        return tabulate(request)


TARGET = GgufTarget()
