"""edgelm: compile language models for the edge, and run them with one `predict`.

    import edgelm
    model = edgelm.load("intent.edgelm")
    model.predict("I lost my card").label

Importing this package loads no engine, no numpy and no torch; names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.runtime.chat_model import ChatModel
    from edgelm.runtime.errors import (
        BudgetError,
        BundleError,
        BundleNotFound,
        BundleVersionError,
        DataError,
        EdgelmError,
        InputError,
        MissingExtra,
        ModelError,
        RecipeError,
        StorageError,
        TamperedError,
        TargetUnavailable,
        UnknownVariant,
        UntrustedError,
        UsageError,
        VerificationError,
    )
    from edgelm.runtime.load import load
    from edgelm.runtime.model import Model
    from edgelm.runtime.predictions import Classification, Embedding, Generation, LabelSet, Piece
    from edgelm.runtime.text_model import TextModel
    from edgelm.runtime.trust.policy import Trust

__version__ = "0.1.0"

_HOMES = {
    "load": "edgelm.runtime.load",
    "Model": "edgelm.runtime.model",
    "TextModel": "edgelm.runtime.text_model",
    "Trust": "edgelm.runtime.trust.policy",
    "ChatModel": "edgelm.runtime.chat_model",
    "Classification": "edgelm.runtime.predictions",
    "LabelSet": "edgelm.runtime.predictions",
    "Embedding": "edgelm.runtime.predictions",
    "Generation": "edgelm.runtime.predictions",
    "Piece": "edgelm.runtime.predictions",
}

__all__ = [
    "BudgetError",
    "BundleError",
    "BundleNotFound",
    "BundleVersionError",
    "ChatModel",
    "Classification",
    "DataError",
    "EdgelmError",
    "Embedding",
    "Generation",
    "InputError",
    "LabelSet",
    "MissingExtra",
    "Model",
    "ModelError",
    "Piece",
    "RecipeError",
    "StorageError",
    "TamperedError",
    "TargetUnavailable",
    "TextModel",
    "Trust",
    "UnknownVariant",
    "UntrustedError",
    "UsageError",
    "VerificationError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgelm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "edgelm.runtime.errors")), name)


def __dir__() -> list[str]:
    return __all__
