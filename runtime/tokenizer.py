"""Text to token batches, by Hugging Face `tokenizers`, the same on every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.engine import TokenBatch
from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import TextLimits

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

FILE_NAME = "tokenizer.json"
Text = str | tuple[str, str]  # one text, or a pair


@dataclass(frozen=True)
class Tokens:
    """N tokenized texts, ragged: text i is ids[offsets[i]:offsets[i+1]]."""

    rows: list[list[int]]
    type_rows: list[list[int]] | None  # None where all type ids are 0
    lengths: NDArray[np.int32]  # (N,)
    truncated: list[bool]

    def batch(self, indices: NDArray[np.intp], pad_id: int) -> TokenBatch:
        """The named texts, padded to the longest of them."""
        lengths = self.lengths[indices]
        B, T = len(indices), int(lengths.max())
        input_ids = np.full((B, T), pad_id, np.int32)
        type_ids = np.zeros((B, T), np.int32)
        for b, i in enumerate(indices):
            n = lengths[b]
            input_ids[b, :n] = self.rows[i]
            if self.type_rows is not None:
                type_ids[b, :n] = self.type_rows[i]
        return TokenBatch(input_ids, lengths, type_ids)


class Tokenizer:
    """`tokenizer.json` with the bundle's limits. Safe to use from many threads."""

    def __init__(self, folder: Path, limits: TextLimits, *, truncates: bool = True) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_file(str(folder / FILE_NAME))
        except BaseException as err:
            if isinstance(err, (KeyboardInterrupt, SystemExit)):
                raise
            raise BundleError(f"{folder / FILE_NAME}: not a tokenizer: {err}") from err
        self._backend.no_padding()
        if truncates:
            self._backend.enable_truncation(limits.max_tokens)
        else:
            self._backend.no_truncation()
        self.limits = limits

    def encode(self, texts: Sequence[Text]) -> Tokens:
        """Tokenize, special tokens added, truncated to `limits.max_tokens`."""
        encodings: list[Encoding] = self._backend.encode_batch_fast(texts)
        rows = [e.ids for e in encodings]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        types = [e.type_ids for e in encodings] if self.limits.type_ids else None
        return Tokens(rows, types, lengths, [bool(e.overflowing) for e in encodings])

    def prompt_ids(self, text: str, *, special: bool) -> list[int]:
        """One text's token ids; `special` adds what begins a text (a chat template does itself)."""
        return self._backend.encode(text, add_special_tokens=special).ids

    def token(self, token_id: int) -> str:
        """A single token's text; broken where the token is a part of a character."""
        return self._backend.decode([token_id], skip_special_tokens=False)

    @property
    def backend(self) -> Backend:
        """The library's tokenizer, for those who turn ids into text."""
        return self._backend
