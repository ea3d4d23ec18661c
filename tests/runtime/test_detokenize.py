"""Pieces join to the tokenizer's own decoding of the whole, for every kind of tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelm.runtime.generate.detokenize import Detokenizers

TEXTS = ["hello there, 你好 😀 naïve", "the cat's  tail\n\tis long", "日本語 and नमस्ते"]
KINDS = ("byte-level", "sentencepiece", "gemma", "wordpiece", "metaspace", "bpe", "no-decoder")


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A tiny tokenizer; ids 0 and 1 are special."""
    if kind == "byte-level":
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tok.train_from_iterator(
            TEXTS,
            trainers.BpeTrainer(
                vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
            ),
        )
        tok.add_tokens(["日 x", AddedToken("  ", normalized=False)])
        return tok
    pieces = ["<s>", "</s>", *"abc. ,é�", "ab", "'s", " n't", "##c", "##.", "c</w>", "a</w>"]
    pieces += ["▁", "▁▁", "▁a", "▁ab", "▁▁c", "<0xZZ>", "日本"]
    if kind in ("sentencepiece", "gemma"):
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    model: Any = models.BPE(vocab, [])
    if kind == "wordpiece":
        model = models.WordPiece(vocab, unk_token="a")
    tok = Tokenizer(model)
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    decoder = {
        "sentencepiece": decoders.Sequence([*fallback, decoders.Strip(" ", 1, 0)]),
        "gemma": decoders.Sequence(fallback),
        "wordpiece": decoders.WordPiece(),
        "metaspace": decoders.Metaspace(),
        "bpe": decoders.BPEDecoder(),
    }.get(kind)
    if decoder is not None:
        tok.decoder = decoder
    tok.add_special_tokens(["<s>", "</s>"])
    return tok


def streamed(kind: str, prompt: Sequence[int], ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizers(tokenizer(kind)).start(prompt)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def whole(kind: str, prompt: Sequence[int], ids: Sequence[int]) -> str:
    tok = tokenizer(kind)
    before, after = tok.decode([*prompt]), tok.decode([*prompt, *ids])
    assert after.startswith(before)
    return after[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_join_to_the_decoding_of_the_whole(kind: str, data: st.DataObject) -> None:
    size = tokenizer(kind).get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2), max_size=30))  # some that no token has
    assert "".join(streamed(kind, [], ids)) == whole(kind, [], ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_prompt_comes_before(kind: str, data: st.DataObject) -> None:
    tok = tokenizer(kind)
    # prompts are whole characters: tokens, among them special ones, that are no single bytes
    names = {i: tok.id_to_token(i) or "" for i in range(tok.get_vocab_size())}
    usable = [i for i, name in names.items() if "�" not in tok.decode([i]) and "<0x" not in name]
    prompt = data.draw(st.lists(st.sampled_from(usable), max_size=8))
    ids = data.draw(st.lists(st.integers(0, tok.get_vocab_size() - 1), max_size=20))
    assert "".join(streamed(kind, prompt, ids)) == whole(kind, prompt, ids)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@given(text=st.text(max_size=12))
def test_no_piece_of_a_text_has_a_broken_character(kind: str, text: str) -> None:
    tok = tokenizer(kind)
    if kind == "byte-level":
        ids = tok.encode(text, add_special_tokens=False).ids
    else:
        ids = [tok.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = streamed(kind, [tok.token_to_id("a")], ids)
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces) or "�" in text


def test_text_comes_as_soon_as_it_is_sure() -> None:
    tok = tokenizer("sentencepiece")
    ids = [tok.token_to_id(name) for name in ("▁a", "b", "<0xC3>", "<0xA9>", "</s>", "▁ab")]
    assert streamed("sentencepiece", [], ids) == ["a", "b", "", "", "", "é ab", ""]
    prompt = [tok.token_to_id("."), *[tok.token_to_id("</s>")] * 9]
    assert streamed("sentencepiece", prompt, ids)[0] == " a"  # no longer the first token
    assert streamed("sentencepiece", [], ids[:3])[-1] == "�"


def test_the_end_gives_out_what_was_held_back() -> None:
    tok = tokenizer("byte-level")
    ids = tok.encode("😀").ids
    assert len(ids) > 1
    assert streamed("byte-level", [], ids[:-1]) == [*[""] * (len(ids) - 1), "�"]


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.n_decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def decode(self, ids: Sequence[int]) -> str:
        self.n_decoded += len(ids)
        return self._backend.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_decoded_a_fixed_number_of_times(kind: str) -> None:
    counting, rng, n = Counting(tokenizer(kind)), random.Random(0), 3000
    detokenizer = Detokenizers(counting).start()  # type: ignore[arg-type]
    for _ in range(n):
        detokenizer.push(rng.randrange(counting.get_vocab_size()))
    for _ in range(n):  # broken bytes without end
        detokenizer.push(counting.token_to_id("<0xA9>") or counting.token_to_id("©") or 0)
    detokenizer.flush()
    assert counting.n_decoded < 12 * 2 * n
