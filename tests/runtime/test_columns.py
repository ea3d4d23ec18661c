"""Columns: found by their usual names, named by the caller, or asked for."""

from __future__ import annotations

import pytest

from edgelm.runtime.columns import Columns, find_columns
from edgelm.runtime.errors import DataError


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("text,category", Columns("text", None, "category")),
        ("Label,Text_A", Columns("Text_A", None, "Label")),
        ("Title,content,intent,labels", Columns("content", None, "labels")),
        ("sentence1,sentence2,label,score", Columns("sentence1", "sentence2", "label")),
        ("premise,hypothesis,gold,label", Columns("premise", "hypothesis", "label")),
    ],
)
def test_columns_are_found_by_their_usual_names(names, columns):
    assert find_columns(names.split(",")) == columns


def test_columns_named_by_the_caller():
    names = ["a", "b", "c", "text", "label"]
    assert find_columns(names, text="a", pair="b", label="c") == Columns("a", "b", "c")
    assert find_columns(names, pair="b") == Columns("text", "b", "label")
    assert find_columns(["q1", "sentence1", "sentence2"], text="q1", need_label=False).pair is None
    pair = ["sentence1", "sentence2", "score"]
    assert find_columns(pair, pair="sentence2", need_label=False).score == "score"


@pytest.mark.parametrize(
    ("names", "named", "says"),
    [
        ("text,label", {"text": "txt"}, "no text column 'txt' (did you mean 'text'?)"),
        ("text,label", {"text": "text", "label": "text"}, "cannot be two things"),
        ("utterance,category,intent", {}, "more than one column looks like the label"),
        ("Text,text,label", {}, "more than one column looks like the text: 'Text', 'text'"),
        ("sentence1,sentence2,text_a,text_b,label", {}, "more than one column looks like the text"),
        ("text,colour", {}, "no column looks like the label"),
        ("I lost my card,lost_card", {}, "no column looks like the text"),
    ],
)
def test_columns_that_cannot_be_settled(names, named, says):
    with pytest.raises(DataError) as caught:
        find_columns(names.split(","), **named, path="a.csv")
    assert says in str(caught.value)
    assert str(caught.value).startswith("a.csv: ")
    assert caught.value.hint or "two things" in says
