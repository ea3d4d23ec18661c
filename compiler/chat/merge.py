"""merge for decoders: an adapter trained here or elsewhere is folded in, logits compared.

What was trained is saved in float32: rounding W + BA to the bf16 that most decoders come in would
move the logits by about a hundredth and lose part of what was learned, before any target rounds it
once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.adapter import adapter_digest, attach
from edgelm.compiler.chat.finetune import check_samples
from edgelm.compiler.chat.samples import render_all
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_tokenizer
from edgelm.compiler.passes.merge import Answers, Merge

PROBES = 8  # rows on which logits before and after are compared
PROBE_TOKENS = 128  # their first tokens
LOGITS = 16  # the logits of the last of these


class ChatMerge(Merge):
    """Tied embeddings stay tied, unless an adapter changes one end of them alone."""

    def inputs(self, context: Context) -> dict[str, Any]:
        adapter = context.recipe.adapter
        digest = None if adapter is None else adapter_digest(Path(adapter))
        return {**super().inputs(context), "adapter": digest}

    def weights(self, context: Context) -> tuple[Path, Path | None]:
        start, adapter = super().weights(context)
        if context.recipe.adapter is not None:
            adapter = Path(context.recipe.adapter)
        return start, adapter

    def tokenizer(self, context: Context) -> Any:
        assert context.source is not None
        return load_tokenizer(context.source.folder, padded=False)

    def attach(self, context: Context, model: Any, adapter: Path) -> Any:
        return attach(model, adapter)

    def probes(self, context: Context, tokenizer: Any) -> tuple[Answers, int]:
        assert context.chat is not None
        rows = context.chat.eval[:PROBES]
        samples = render_all(rows, tokenizer, PROBE_TOKENS, keep_all=True)

        def answers(model: Any) -> NDArray[np.float32]:
            import torch

            check_samples(samples, model, "evaluation", PROBE_TOKENS)
            with torch.inference_mode():
                parts = [
                    model(input_ids=torch.tensor([s.ids]), use_cache=False).logits[0, -LOGITS:]
                    for s in samples.samples
                ]
            return torch.cat(parts).float().numpy()

        return answers, len(samples.samples)
