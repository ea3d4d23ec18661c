"""One file a pass. A pass is an object with a name, what decides its result, and three steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelm.compiler.context import Context


class Pass:
    """A step of the compiler. `execute` is the whole life of one.

    A pass whose `inputs` are None is cheap and runs each time with no folder. Any other writes
    into the folder it is handed and reads it back in `load`, so that a kept stage and a fresh one
    take the same way.
    """

    name: str
    version = 1  # raised when equal inputs come to give another result, or files of another form
    resumable = False  # whether `run` goes on from a half-filled folder

    def inputs(self, context: Context) -> dict[str, Any] | None:
        """Everything that decides the result, as plain data; also checks what must be there."""
        raise NotImplementedError

    def run(self, context: Context, folder: Path) -> None:
        """Do the work, writing into `folder`."""

    def load(self, context: Context, folder: Path) -> None:
        """Put the results into the context and check what the pass promises."""
        raise NotImplementedError

    def execute(self, context: Context) -> None:
        """Run, or take the kept stage; then load."""
        inputs = self.inputs(context)
        if inputs is None:
            with context.progress.stage(self.name):
                self.load(context, Path())
            return
        cache = context.cache
        key = cache.key(self.name, self.version, inputs)
        context.digests[self.name] = key
        folder = cache.find(self.name, key)
        with context.progress.stage(self.name, cached=folder is not None):
            if folder is None:
                folder = cache.make(
                    self.name, key, lambda f: self.run(context, f), resume=self.resumable
                )
            self.load(context, folder)
