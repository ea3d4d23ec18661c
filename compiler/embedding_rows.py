"""A Hugging Face directory of a smaller vocabulary: the rows of the embeddings that stay, the ids
that config.json names, and the tokenizer's files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.compiler.context import Source
from edgelm.compiler.passes.intake import COUNTS_FROM_PADDING, has_head
from edgelm.compiler.vocabulary import HINT
from edgelm.runtime.errors import ModelError


def save_tokenizer(tokenizer: Any, spec: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer's files with `spec` as its tokenizer.json."""
    tokenizer.save_pretrained(folder)
    text = json.dumps(spec, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def save_model(source: Source, kept: Sequence[int], folder: Path) -> tuple[int, int]:
    """Write config and weights with the embeddings of the `kept` ids; how many rows there were
    and are. Raises ModelError where the model holds its embeddings otherwise."""
    import torch

    model, missing = _load(source.folder, has_head(source.config))
    table = model.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding):
        raise ModelError(f"{source.folder}: its embeddings are no plain table", hint=HINT)
    n_before = table.num_embeddings
    rows = [i for i in kept if i < n_before]  # a token beyond has no row, in transformers neither
    new = {old: i for i, old in enumerate(kept)}
    table.weight = torch.nn.Parameter(table.weight.detach()[rows].clone())
    table.num_embeddings = model.config.vocab_size = len(rows)
    for key, value in _token_id_keys(model.config.to_dict()).items():
        # an id that no token has stood for none before, too
        many = isinstance(value, list)
        setattr(model.config, key, [new[i] for i in value if i in new] if many else new.get(value))
    # weights that were not in the files, such as a pooler, must not look as if they had been
    state = {name: t for name, t in model.state_dict().items() if name not in missing}
    model.save_pretrained(folder, state_dict=state)
    return n_before, len(rows)


def _load(folder: Path, head: bool) -> tuple[Any, set[str]]:
    """The model in the precision of its files, and which weights are not in those."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification if head else AutoModel
    try:
        model, found = auto.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype="auto",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as err:
        raise ModelError(f"{folder}: the model cannot be loaded: {err}") from err
    return model, set(found["missing_keys"])


def named_ids(source: Source) -> set[int]:
    """Ids that the config names. Where positions are counted from the padding token's id, it and
    all below keep theirs."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False).to_dict()
    ids: set[int] = set()
    for value in _token_id_keys(config).values():
        ids.update(value if isinstance(value, list) else [value])
    if source.model_type in COUNTS_FROM_PADDING:
        ids.update(range(int(config.get("pad_token_id") or 0) + 1))
    return ids


def _token_id_keys(config: dict[str, Any]) -> dict[str, Any]:
    """`pad_token_id` and the like, where they are set."""
    return {k: v for k, v in config.items() if k.endswith("_token_id") and v is not None}
