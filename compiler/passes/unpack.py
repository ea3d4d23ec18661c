"""unpack: a .gguf file as the model becomes the Hugging Face directory that all starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelm.compiler.context import Context
from edgelm.compiler.hf import versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.intake import find_gguf
from edgelm.runtime.files import sha256_file


class Unpack(Pass):
    """Sets context.unpacked."""

    name = "unpack"

    def inputs(self, context: Context) -> dict[str, Any]:
        files = find_gguf(context.recipe)
        return {
            "sha256": [sha256_file(path) for path in files],
            "versions": versions("gguf", "transformers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        from edgelm.targets.gguf.unpack import unpack

        unpack(find_gguf(context.recipe)[0], folder, context.progress.advance)

    def load(self, context: Context, folder: Path) -> None:
        context.unpacked = folder
        assert (folder / "model.safetensors").is_file()
