"""gate: stops the compile, before anything is measured, when a variant is over its limits."""

from __future__ import annotations

from pathlib import Path

from edgelm.compiler.context import Context
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.verify import require_verified


class Gate(Pass):
    """Fail closed."""

    name = "gate"

    def inputs(self, context: Context) -> None:
        return None

    def load(self, context: Context, folder: Path) -> None:
        require_verified(context)
