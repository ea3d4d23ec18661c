"""An adapter that was trained elsewhere: looked at before any work, and put on the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.compiler.cache import digest
from edgelm.runtime.errors import ModelError
from edgelm.runtime.files import sha256_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter(folder: Path) -> None:
    """Raises ModelError unless it is a LoRA directory of peft with weights that run no code."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelError(f"{path}: missing, so this is no adapter of peft") from err
    except (OSError, ValueError) as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"{path}: its kind is {kind!r}, only LORA is merged")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: no {WEIGHTS} in it",
            hint="weights of other forms can run code when loaded: save the adapter again with "
            "peft's save_pretrained, where you trust it",
        )


def adapter_digest(folder: Path) -> str:
    """sha256 of what decides its answers."""
    return digest([sha256_file(folder / name) for name in (CONFIG, WEIGHTS)])


def attach(model: Any, folder: Path) -> Any:
    """The model with the adapter beside its weights. Raises ModelError where they do not fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / WEIGHTS), "np") as file:
        given = set(file.keys())
    if any(_is_of_embeddings(model, key) for key in given):
        untie(model)  # else the change would reach the other end of the model, too
    try:
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as err:
        said = " ".join(str(err).split())
        raise ModelError(
            f"{folder}: the adapter does not fit the model: {said[:300]}",
            hint="name the model that it was trained on",
        ) from err
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    extra = {key for key in given - wanted if not _is_of_embeddings(adapted, key)}
    odd = sorted((wanted - given) | extra)
    if odd:
        raise ModelError(
            f"{folder}: the adapter does not fit the model: {len(odd)} of its weights have no "
            f"place or are missing, {odd[0]} is the first",
            hint="name the model that it was trained on",
        )
    return adapted


def untie(model: Any) -> None:
    """Give the output its own copy of the embedding."""
    import torch

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _is_of_embeddings(model: Any, key: str) -> bool:
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    names = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if m in ends}
    return bool(names & set(key.split(".")))
