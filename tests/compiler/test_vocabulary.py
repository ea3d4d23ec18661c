"""Texts of kept tokens are cut as before, whatever the vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgelm.compiler.vocabulary import Vocabulary
from edgelm.runtime.errors import ModelError, RecipeError

WORDS = st.text("ab", min_size=1, max_size=6)
TEXTS = st.lists(st.text("abc ", max_size=12), max_size=8)
SINGLES = ["a", "b", "##a", "##b"]


def wordpiece(draw: st.DrawFn, closed: bool) -> Tokenizer:
    inner = [f"##{word}" for word in draw(st.lists(WORDS, max_size=12))]
    pieces = ["[UNK]", *draw(st.lists(WORDS, max_size=12)), *inner, *(SINGLES if closed else [])]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))


def bpe(draw: st.DrawFn, closed: bool) -> Tokenizer:
    tokens = ["[UNK]", "a", "b"]
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 14))):  # also several ways to one token
        pair = (draw(st.sampled_from(tokens[1:])), draw(st.sampled_from(tokens[1:])))
        merges.append(pair)
        tokens += ["".join(pair)] if "".join(pair) not in tokens else []
    vocab = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(
        models.BPE(vocab, merges, unk_token="[UNK]", ignore_merges=draw(st.booleans()))
    )


def unigram(draw: st.DrawFn, closed: bool) -> Tokenizer:
    pieces = dict.fromkeys([*draw(st.lists(WORDS, max_size=14)), *("ab" if closed else "")])
    scores = st.sampled_from([-1.0, -1.5, -2.0, -3.5, -7.25])  # with ties
    vocab = [("[UNK]", 0.0), *((piece, draw(scores)) for piece in pieces)]
    return Tokenizer(models.Unigram(vocab, unk_id=0))


@pytest.mark.parametrize("make", [wordpiece, bpe, unigram])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_texts_of_kept_tokens_are_cut_as_before(make: Any, data: st.DataObject) -> None:
    closed = data.draw(st.booleans())  # whether each character that is known has its own piece
    before = data.draw(st.composite(make)(closed))
    before.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    before.add_special_tokens(["[UNK]", "[SEP]"])  # the latter has an id behind the model's own
    sep = before.token_to_id("[SEP]")
    before.post_processor = processors.BertProcessing(("[SEP]", sep), ("[UNK]", 0))
    vocabulary = Vocabulary(json.loads(before.to_str()))
    counts = {i: 1 for text in data.draw(TEXTS) for i in before.encode(text).ids}
    kept = sorted(vocabulary.choose(counts, (), None))
    assert set(counts) <= set(kept)
    after = Tokenizer.from_str(json.dumps(vocabulary.trimmed(kept)))
    new = {old: i for i, old in enumerate(kept)}
    assert after.get_vocab_size() == len(kept)
    for old, i in new.items():
        assert after.id_to_token(i) == before.id_to_token(old)
    for text in [*data.draw(TEXTS), "aab b c [SEP]ab"]:
        ids = before.encode(text).ids
        found = after.encode(text).ids
        unknown = 0 in ids[1:]
        if all(i in new for i in ids) and (closed or not unknown):
            assert found == [new[i] for i in ids]
        if not unknown and (closed or make is bpe):
            assert 0 not in found[1:]  # what could be spelled still can be


def test_the_most_frequent_are_kept_with_what_makes_them() -> None:
    tokens = ["[UNK]", "a", "b", "c", "ab", "abc", "bc", "ca"]
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "a")]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="[UNK]")
    vocabulary = Vocabulary(json.loads(Tokenizer(model).to_str()))
    counts = {5: 9, 6: 1, 7: 2}
    assert vocabulary.choose(counts, (), None) == set(range(8))
    assert vocabulary.choose(counts, (), 6) == {0, 1, 2, 3, 4, 5}  # abc, made by ab
    assert vocabulary.choose(counts, (), 7) == {0, 1, 2, 3, 4, 5, 7}
    spec = vocabulary.trimmed([0, 1, 2, 3, 5])  # without ab nothing leads to abc
    assert spec["model"]["merges"] == []
    with pytest.raises(RecipeError, match="4 tokens are needed"):
        vocabulary.choose(counts, (), 3)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="a"),
        models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"),
    ],
)
def test_other_kinds_are_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="cannot be trimmed"):
        Vocabulary(json.loads(Tokenizer(model).to_str()))
