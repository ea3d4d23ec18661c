"""Decoders that give vectors: what the compiler and both targets must know of them."""

from __future__ import annotations

from pathlib import Path

from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Pooling


def is_causal(folder: Path) -> bool:
    """Whether the Hugging Face model is a decoder: each token sees itself and those before it only.

    Asked of the model's modules, made without weights. Raises ModelError."""
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(f"{folder}: its config cannot be loaded: {err}") from err
    return any(getattr(module, "is_causal", False) for module in model.modules())


def check_pooling(pooling: Pooling) -> None:
    """Raise ModelError for what makes no sense in a decoder."""
    if pooling == "cls":
        raise ModelError(
            "pooling: 'cls': a decoder's first token sees nothing but itself, whatever the text",
            hint="take last or mean",
        )
