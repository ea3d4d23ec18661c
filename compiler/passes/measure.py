"""measure: size, latency, throughput and memory of a variant on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.compiler.context import Context, eval_texts
from edgelm.compiler.machine import machine_id
from edgelm.compiler.packing import build_manifest, write_bundle
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.verify import DEVICE
from edgelm.runtime.bench import measure_variant
from edgelm.runtime.manifest import Measured
from edgelm.runtime.schema import decode, encode
from edgelm.runtime.tokenizer import Text

SECONDS = 1.0
MAX_TEXTS = 1024


class Measure(Pass):
    """Sets the variant's `measured`."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = f"measure {variant}"

    def inputs(self, context: Context) -> dict[str, Any]:
        return {
            "verify": context.digests[f"verify {self.variant}"],
            "threads": context.recipe.threads,
            "machine": machine_id(),
            "call": encode(context.recipe.measure),
        }

    def run(self, context: Context, folder: Path) -> None:
        state = context.variants[self.variant]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".bundle-") as scratch:
            bundle = Path(scratch)
            write_bundle(context, build_manifest(context, "measured", [state]), bundle)
            measured = measure_variant(
                bundle,
                self.variant,
                self.texts(context)[:MAX_TEXTS],
                threads=context.recipe.threads,
                device=DEVICE,
                seconds=SECONDS,
                batch=context.recipe.measure.batch,
                tokens=context.recipe.measure.tokens,
            )
        (folder / "measured.json").write_text(json.dumps(encode(measured)), encoding="utf-8")

    def texts(self, context: Context) -> Sequence[Text]:
        """What the variant is measured with."""
        return eval_texts(context)

    def load(self, context: Context, folder: Path) -> None:
        text = (folder / "measured.json").read_text(encoding="utf-8")
        context.variants[self.variant].measured = decode(Measured, json.loads(text))
