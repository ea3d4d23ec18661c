"""The tokenizer as llama.cpp wants it, from tokenizer.json.

edgelm's engine is fed token ids and never reads it; llama.cpp and ollama do when they load the
file alone. What they cannot compute becomes a vocabulary of numbers only: a file that says so is
better than one whose tokens are wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.vocab.base import Vocab
from edgelm.targets.gguf.vocab.decoders import decoder_vocab
from edgelm.targets.gguf.vocab.encoders import encoder_vocab

__all__ = ["Vocab", "read_vocab"]


def read_vocab(folder: Path, n_rows: int, family: str, *, decoder: bool = False) -> Vocab:
    """The vocabulary, filled up or cut to `n_rows`. Raises ModelError."""
    path = folder / "tokenizer.json"
    try:
        spec = json.loads(path.read_text("utf-8"))
        config = _read(folder / "tokenizer_config.json")
        if not decoder:
            return encoder_vocab(spec, config, n_rows, family)
        ends = [_read(folder / name) for name in ("generation_config.json", "config.json")]
        template = folder / "chat_template.jinja"
        text = template.read_text("utf-8") if template.is_file() else None
        return decoder_vocab(spec, config, n_rows, ends, text)
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
        raise ModelError(f"{path}: not a tokenizer that can be understood: {err!r}") from err


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
