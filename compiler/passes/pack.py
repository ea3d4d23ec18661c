"""pack: put everything into the bundle's directory, whole or not at all."""

from __future__ import annotations

import glob
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgelm import __version__
from edgelm.compiler.cache import digest
from edgelm.compiler.context import Context
from edgelm.compiler.hf import versions
from edgelm.compiler.packing import build_manifest, write_bundle
from edgelm.compiler.passes import Pass
from edgelm.compiler.recipe import dump_recipe
from edgelm.compiler.report import render_card, render_report, report_data
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import StorageError
from edgelm.runtime.files import replace_tree, storage_errors
from edgelm.runtime.manifest import FILE_NAME, Manifest
from edgelm.runtime.trust.keys import SigningKey
from edgelm.runtime.trust.sign import sign_bundle

SUFFIX = ".edgelm"


class Pack(Pass):
    """Writes the bundle to `output`; sets self.manifest."""

    name = "pack"

    def __init__(self, output: Path, sign: SigningKey | None = None) -> None:
        self.output = output
        self.sign = sign
        self.manifest: Manifest | None = None

    def inputs(self, context: Context) -> None:
        assert context.variants and not any(v.failures for v in context.variants.values())

    def load(self, context: Context, folder: Path) -> None:
        name = context.recipe.name or self.output.name.removesuffix(SUFFIX)
        manifest = replace(
            build_manifest(context, name, context.variants.values()),
            provenance=_provenance(context),
        )
        recipe = dump_recipe(context.recipe)
        data = report_data(context, manifest, recipe)
        extra = {
            "recipe.yaml": recipe,
            "report.html": render_report(data),
            "card.md": render_card(data),
        }
        prefix = f".{self.output.name}.new-"
        with storage_errors(self.output), output_lock(context.cache.root, self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            for left in self.output.parent.glob(f"{glob.escape(prefix)}*"):  # by a killed compile
                shutil.rmtree(left, ignore_errors=True)
            staged = Path(tempfile.mkdtemp(dir=self.output.parent, prefix=prefix))
            try:
                staged.chmod(0o755)
                self.manifest = write_bundle(context, manifest, staged, extra)
                bundle = Bundle(staged)  # what was written is read back and checked
                bundle.check(bundle.all_files())
                if self.sign is not None:
                    sign_bundle(staged, self.sign)
                replace_tree(staged, self.output)
            finally:
                shutil.rmtree(staged, ignore_errors=True)


def output_lock(cache_root: Path, output: Path) -> Any:
    """Held while `output` is replaced, so that two compiles to one output take turns."""
    from filelock import FileLock

    folder = cache_root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{digest(str(output))}.lock")


def check_output(output: Path) -> None:
    """Refuse, before any work, an output that cannot become a bundle. Raises StorageError."""
    with storage_errors(output):
        is_bundle = (output / FILE_NAME).is_file()
        is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
        if not is_bundle and not is_free:
            raise StorageError(
                f"{output}: exists and is no bundle, so it is not replaced",
                hint="choose another name with --output",
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=output.parent).cleanup()  # can it be written to?


def _provenance(context: Context) -> dict[str, Any]:
    trimmed = context.trimmed
    source = trimmed.original if trimmed else context.source
    assert source
    recovered = {"recovered": context.recoveries} if context.recoveries else {}
    return {
        **recovered,
        "edgelm": __version__,
        "model": {"name": context.recipe.model, "sha256": source.digest},
        **({"trim": trimmed.report} if trimmed else {}),
        **({"sparsify": context.sparsified.report} if context.sparsified else {}),
        "data": {"sha256": context.data_digest},
        "stages": dict(context.digests),
        "packages": versions("torch", "transformers", "tokenizers", "numpy"),
    }
