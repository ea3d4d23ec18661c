"""Splits, overlaps and contradictions: what must hold for any data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.compiler.split import contradictions, drop_overlap, stratified_split, text_key
from edgelm.runtime.examples import Example


def example(text: str, *labels: str, pair: str | None = None, row: int = 1) -> Example:
    return Example(text, pair, labels, None, Path("a.csv"), row)


texts = st.text("aAb ", min_size=1, max_size=4).filter(str.strip)
label_names = st.sampled_from("xyz")
single = st.lists(st.builds(example, texts, label_names), min_size=1, max_size=40)
multi = st.lists(
    st.lists(label_names, unique=True, max_size=3).flatmap(
        lambda labels: st.builds(lambda text: example(text, *labels), texts)
    ),
    min_size=1,
    max_size=40,
)


@given(data=single | multi, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
@settings(deadline=None)
def test_any_split(data, fraction, seed):
    train, held_out = stratified_split(data, fraction, seed)
    assert stratified_split(data, fraction, seed) == (train, held_out)
    assert Counter(train) + Counter(held_out) == Counter(data)
    assert drop_overlap(train, held_out) == (held_out, [])
    assert not contradictions(held_out)
    given_labels = {label for e in data for label in e.labels}
    assert {label for e in train for label in e.labels} == given_labels


@given(
    counts=st.dictionaries(label_names, st.integers(1, 30), min_size=1),
    fraction=st.floats(0.01, 0.99),
)
@settings(deadline=None)
def test_each_label_has_its_share(counts, fraction):
    data = [example(f"{label}{i}", label) for label, n in counts.items() for i in range(n)]
    train, held_out = stratified_split(data, fraction, 0)
    for label, n in counts.items():
        kept = sum(e.labels == (label,) for e in train)
        out = sum(e.labels == (label,) for e in held_out)
        if n == 1:
            assert (kept, out) == (1, 0)
        else:
            assert kept >= 1
            assert out >= 1
            assert out in (1, n - 1, round(n * fraction))


def test_another_seed_is_another_split():
    data = [example(f"text {i}", "x") for i in range(100)]
    assert stratified_split(data, 0.1, 0) != stratified_split(data, 0.1, 1)
    assert [e.text for e in stratified_split(data, 0.1, 0)[1]] == sorted(
        (e.text for e in stratified_split(data, 0.1, 0)[1]), key=lambda text: int(text[5:])
    )


def test_texts_are_equal_by_meaning_not_by_bytes():
    assert text_key(example("  Ｈello\n\tWORLD ")) == text_key(example("hello world"))
    assert text_key(example("stra\u00dfe")) == text_key(example("STRASSE"))
    assert text_key(example("a", pair="b")) != text_key(example("a"))
    assert text_key(example("a", pair="b")) != text_key(example("b", pair="a"))


def test_overlaps_are_dropped_and_told_with_both_rows():
    train = [example("Hello", "x", row=2), example("hello", "x", row=3)]
    held_out = [
        example("new", "x", row=2),
        example("HELLO ", "y", row=3),
        example("new", "x", row=4),
    ]
    kept, dropped = drop_overlap(train, held_out)
    assert [e.row for e in kept] == [2, 4]
    assert [(o.text, o.eval_row, o.train_row) for o in dropped] == [("HELLO ", 3, 2)]


def test_contradictions_name_the_first_two_places():
    data = [example(t, label, row=i) for i, (t, label) in enumerate(["ax", "Ax", "ay", "az", "bx"])]
    ((a, b),) = contradictions(data)
    assert (a.row, b.row) == (0, 2)
    assert not contradictions([example("a", "x", "y"), example("a", "y", "x")])


def test_a_label_that_only_ever_comes_second_keeps_a_text_to_train_on():
    data = [example("both", "x", "y"), *(example(f"text {i}", "x") for i in range(3))]
    for seed in range(20):
        train, held_out = stratified_split(data, 0.5, seed)
        assert data[0] in train
        assert len(held_out) == 2
