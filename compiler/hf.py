"""Hugging Face models and tokenizers, loaded one way everywhere in the compiler."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.cores import usable_cores
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.runtime.tokenizer import Text
from edgelm.targets.base import missing
from edgelm.targets.encoders import load_narrow

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE_BATCH = 32


def require_compile_extra() -> None:
    """Raise MissingExtra unless torch and transformers can be imported; then silence them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    versions("torch", "transformers", "peft", "accelerate")
    from transformers.utils import logging

    # transformers warns itself of its own coming changes; nothing a user of edgelm can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


STAND_INS = {"onnxruntime": ("onnxruntime-gpu",)}  # other packages that bring the same module


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for stage keys and provenance. Raises MissingExtra, or TargetUnavailable
    for a package that this Python cannot have."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    for name in (package, *STAND_INS.get(package, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise missing(package)


def load_tokenizer(folder: Path, *, padded: bool = True) -> Any:
    """A fast tokenizer; `padded`: set to pad and truncate on the right, as the runtime does it. One
    without a padding token pads with what ends a text: padding is masked, any token will do.

    Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(f"{folder}: its tokenizer cannot be loaded: {err}") from err
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder}: it has no fast tokenizer (tokenizer.json)",
            hint="convert it once: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    if not padded:
        return tokenizer
    tokenizer.truncation_side = tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no padding token")
    return tokenizer


def load_model(folder: Path, task: Task, *, new_head: bool) -> Any:
    """The model in float32, in eval mode. `new_head` lets a missing or unfitting head be made
    (of a classifier: a decoder's head is never made).

    Raises ModelError, also when weights are missing that transformers would fill at random."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    options: dict[str, Any] = dict(
        use_safetensors=True, trust_remote_code=False, dtype="float32", output_loading_info=True
    )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if task.kind == "feature-extraction":
            narrow = load_narrow(AutoModel, folder, config)
            if narrow is not None:
                return narrow
            model, found = AutoModel.from_pretrained(folder, **options)
        elif task.kind == "text-generation":
            decoder: Any = AutoModelForCausalLM
            model, found = decoder.from_pretrained(folder, **options)
        else:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: i for i, label in enumerate(task.labels)}
            if task.problem == "single_label":
                config.problem_type = "single_label_classification"
            else:
                config.problem_type = "multi_label_classification"
            narrow = load_narrow(AutoModelForSequenceClassification, folder, config)
            if narrow is not None:
                return narrow
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, ignore_mismatched_sizes=new_head, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as err:
        raise ModelError(f"{folder}: the model cannot be loaded: {err}") from err
    makes_head = new_head and task.kind != "text-generation"
    _check_found(folder, task, model, found["missing_keys"], makes_head)
    return model.eval()


def _check_found(
    folder: Path, task: Task, model: Any, missing_keys: Iterable[str], new_head: bool
) -> None:
    """Raise ModelError for weights that are not in the files, but may not be made at random."""
    body = f"{model.base_model_prefix}."
    free_pooler = new_head or task.kind == "feature-extraction"  # embeddings do not use it
    missing = sorted(
        key
        for key in missing_keys
        if not (free_pooler and "pooler" in key.split("."))
        and not (new_head and not key.startswith(body))
    )
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of the model's weights are not in its files, "
            f"{missing[0]} is the first",
            hint="is config.json's `architectures` the class that the weights were saved from?",
        )


def linear_layers(body: Any) -> dict[str, Any]:
    """The linear layers of a model's body by their names in it, without poolers."""
    from torch.nn import Linear

    return {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, Linear) and "pooler" not in name.split(".")
    }


def uses_type_ids(tokenizer: Any, config: Any) -> bool:
    """Whether the model tells the texts of a pair apart by token type ids."""
    return (
        "token_type_ids" in tokenizer.model_input_names
        and getattr(config, "type_vocab_size", 0) > 1
    )


def encode(tokenizer: Any, texts: Sequence[Text], max_tokens: int, type_ids: bool) -> Any:
    """A padded torch batch, as the model's own users would make it."""
    if isinstance(texts[0], str):
        firsts, seconds = list(texts), None
    else:
        firsts, seconds = [t[0] for t in texts], [t[1] for t in texts]
    batch = tokenizer(
        firsts,
        seconds,
        padding=True,
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
        return_token_type_ids=type_ids,
    )
    return dict(batch)


def reference_outputs(
    model: Any,
    tokenizer: Any,
    task: Task,
    texts: Sequence[Text],
    max_tokens: int,
    advance: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """What the Hugging Face model answers: logits (N, C), or pooled vectors (N, H)."""
    import torch

    type_ids = uses_type_ids(tokenizer, model.config)
    order = sorted(range(len(texts)), key=lambda i: len(str(texts[i])))
    values: NDArray[np.float32] | None = None
    done = 0
    with torch.inference_mode():
        for start in range(0, len(order), REFERENCE_BATCH):
            part = order[start : start + REFERENCE_BATCH]
            batch = encode(tokenizer, [texts[i] for i in part], max_tokens, type_ids)
            out = model(**batch)
            if task.kind == "feature-extraction":
                rows = pool(out.last_hidden_state, batch["attention_mask"], task.pooling)
            else:
                rows = out.logits
            if values is None:
                values = np.empty((len(texts), rows.shape[1]), np.float32)
            values[part] = rows.float().numpy()
            done += len(part)
            if advance is not None:
                advance(done, len(texts))
    assert values is not None, "reference_outputs needs at least one text"
    return values


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """Hidden states (B, T, H) and mask (B, T), padded on the right, to vectors (B, H)."""
    import torch

    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = mask.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden)), last]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def seed_everything(seed: int) -> None:
    """Python, numpy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Let torch use `n` threads inside the block; all cores when None."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
