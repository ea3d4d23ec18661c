"""Token ids to text, piece by piece, while an answer grows.

    detokenizer = Detokenizers(backend).start(prompt_ids)
    pieces = [detokenizer.push(token_id) for token_id in answer_ids] + [detokenizer.flush()]

The pieces join to what the tokenizer's decoding of prompt and answer adds to that of the prompt,
special tokens left out. Bytes are held back until their character is whole. Each token is decoded
a fixed number of times, however long the answer is.

`tokenizers.decoders.DecodeStream` is not used: it has no end, fails on runs of byte tokens that
are no UTF-8, and decodes a run of broken bytes again for each of its tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_CONTEXT = 4  # tokens before a token that its text may depend on; the decoders known need one


class Detokenizer(Protocol):
    """The text of one answer."""

    def push(self, token_id: int) -> str:
        """Append a token; the text that is now sure, often empty."""
        ...

    def flush(self) -> str:
        """What is left at the end of the answer; bytes that are no character become U+FFFD."""
        ...


class Detokenizers:
    """Makes the detokenizers of one tokenizer, which share what is known of its tokens."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self._special = {
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._bytes: dict[int, bytes] = {}  # of tokens already seen
        decode = backend.decoder.decode if backend.decoder is not None else " ".join
        # Asked, not read off its type: the same decoders come nested and in different order.
        self.is_byte_level = decode(["Ġ", "ĠÃ", "©ĠĠ"]) == "  é  "
        self.has_byte_tokens = decode(["<0x41>"]) == "A"
        self.cuts_characters = decode(["Ã"]) == "\ufffd"

    def start(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """For an answer to the prompt."""
        return _ByteLevel(self) if self.is_byte_level else _Windowed(self, prompt_ids)

    def token(self, token_id: int) -> str | None:
        """The token's name; None for what decoding leaves out."""
        return None if token_id in self._special else self.backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Of a byte-level tokenizer."""
        found = self._bytes.get(token_id)
        if found is None:
            name = self.token(token_id) or ""
            try:
                found = bytes(_BYTE_OF[char] for char in name)
            except KeyError:  # an added token, which stands for itself
                found = name.encode("utf-8")
            self._bytes[token_id] = found
        return found


class _ByteLevel:
    """Tokens are bytes, whatever stands before them."""

    def __init__(self, texts: Detokenizers) -> None:
        self._texts = texts
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._texts.token_bytes(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Windowed:
    """Decodes the newest tokens after a few that were decoded before.

    A run of byte tokens is one text, all of it characters or all of it U+FFFD, so it is given out
    when another token has ended it."""

    def __init__(self, texts: Detokenizers, prompt_ids: Sequence[int]) -> None:
        self._texts = texts
        context: list[int] = []
        for token_id in reversed(prompt_ids):
            if len(context) == _CONTEXT:
                break
            name = texts.token(token_id)
            # Prompts are whole characters: no run of bytes goes on in the answer.
            if name is not None and not self._is_byte(name):
                context.append(token_id)
        self._ids = context[::-1]  # the context, then what is not given out yet
        self._given = self._decode()  # the text of the context

    def push(self, token_id: int) -> str:
        name = self._texts.token(token_id)
        if name is None:
            return ""
        self._ids.append(token_id)
        if self._is_byte(name):
            return ""
        text = self._decode()
        is_partial = self._texts.cuts_characters and text.endswith("\ufffd")
        if is_partial or not text.startswith(self._given):
            return ""
        piece = text[len(self._given) :]
        del self._ids[:-_CONTEXT]
        self._given = self._decode()
        return piece

    def flush(self) -> str:
        text = self._decode()
        piece, self._given = text[len(self._given) :], text
        return piece

    def _is_byte(self, name: str) -> bool:
        return self._texts.has_byte_tokens and _BYTE_TOKEN.fullmatch(name) is not None

    def _decode(self) -> str:
        return self._texts.backend.decode(self._ids)


def _byte_characters() -> Iterator[tuple[str, int]]:
    """The characters that stand for bytes in byte-level tokens: printable ones for themselves."""
    stand_in = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte), byte
        else:
            yield chr(stand_in), byte
            stand_in += 1


_BYTE_OF = dict(_byte_characters())
