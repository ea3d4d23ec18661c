"""The GGUF target: llama.cpp on CPUs, and on GPUs where its library was built for one."""

from __future__ import annotations

from pathlib import Path

from edgelm.runtime.engine import EngineOptions, Session
from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.manifest import Task, Variant
from edgelm.targets.base import Capabilities, Lowered, LowerRequest
from edgelm.targets.gguf.precisions import PRECISIONS


class GgufTarget:
    """One row of the table of targets."""

    name = "gguf"
    engine_package = "llama-cpp-python"
    lower_packages = ("gguf", "llama-cpp-python")

    def capabilities(self) -> Capabilities:
        devices: tuple[str, ...] = ("cpu",)
        if self.available() is None:
            from edgelm.targets.gguf import bindings
            from edgelm.targets.gguf.engine import has_cuda

            if has_cuda(bindings.load()):
                devices = ("cpu", "cuda")
        return Capabilities(("text-classification", "feature-extraction"), PRECISIONS, devices)

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

    def lower(self, request: LowerRequest) -> Lowered:
        """Write the variant's files. Raises ModelError, MissingExtra."""
        from edgelm.targets.gguf.lower import lower

        return lower(request)


TARGET = GgufTarget()
