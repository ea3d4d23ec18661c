"""Texts and labels out of rows: what counts as a text, a label, a set of labels, a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import read_examples

names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters=";"), min_size=1
)


def table(folder: Path, *rows: str, header: str = "text,label", name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def lines(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def labels(path: Path, **how: object) -> list[tuple[str, ...] | None]:
    return [e.labels for e in read_examples(path, need_label=True, **how).examples]  # type: ignore[arg-type]


def refused(path: Path, **how: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read_examples(path, **{"need_label": True, **how})  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return caught.value


def test_an_example_knows_its_row(tmp_path):
    found = read_examples(table(tmp_path, "12, x ", '" two ",y'), need_label=True)
    one, two = found.examples
    assert (one.text, one.labels, one.row, one.pair, one.score) == ("12", ("x",), 2, None, None)
    assert (two.text, two.path.name, two.row) == (" two ", "a.csv", 3)
    assert (found.multi_label, found.columns.label) == (False, "label")


def test_labels_become_text(tmp_path):
    path = lines(tmp_path, *({"text": "a", "label": v} for v in (0, "0", True, "wörd")))
    assert labels(path) == [("0",), ("0",), ("True",), ("wörd",)]


def test_lists_are_sets_of_labels(tmp_path):
    path = lines(tmp_path, {"text": "a", "tags": ["x", 1, "x"]}, {"text": "b", "tags": []})
    assert labels(path) == [("x", "1"), ()]
    assert read_examples(path, need_label=True).multi_label
    assert refused(path, multi_label=False).row == 1


def test_cells_are_sets_where_asked_or_named_so(tmp_path):
    path = table(tmp_path, "a,x; y", "b,", "c,z;", header="text,tags")
    assert labels(path) == [("x", "y"), (), ("z",)]
    path = table(tmp_path, "a,x;y")
    assert labels(path) == [("x;y",)]
    assert labels(path, multi_label=True) == [("x", "y")]
    assert labels(path, multi_label=True, label_separator="|") == [("x;y",)]
    assert labels(table(tmp_path, "a,x", header="text,labels")) == [("x",)]
    path = lines(tmp_path, {"text": "a", "tags": "x;y"})
    assert labels(path) == [("x;y",)]
    assert labels(path, multi_label=True) == [("x", "y")]


@given(sets=st.lists(st.lists(names, unique=True, max_size=4), min_size=1, max_size=5))
@settings(max_examples=40)
def test_sets_written_as_cells_or_lists_are_the_same(tmp_path_factory, sets):
    folder = tmp_path_factory.getbasetemp()
    rows = [{"text": "a", "labels": s} for s in sets]
    assert labels(lines(folder, *rows)) == [tuple(s) for s in sets]
    import csv

    path = folder / "sets.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("text", "labels"), *(("a", ";".join(s)) for s in sets)])
    assert labels(path, multi_label=True) == [tuple(s) for s in sets]


def test_pairs_and_scores(tmp_path):
    path = table(tmp_path, "a,b,0.5", "c,d,1", header="sentence1,sentence2,score")
    found = read_examples(path, need_label=False)
    assert [(e.text, e.pair, e.score) for e in found.examples] == [("a", "b", 0.5), ("c", "d", 1)]
    found = read_examples(path, need_label=True, label="score")
    assert [(e.score, e.labels) for e in found.examples] == [(None, ("0.5",)), (None, ("1",))]
    path = lines(tmp_path, {"text1": "a", "text2": "b", "gold": 3})
    assert read_examples(path, need_label=False, score="gold").examples[0].score == 3.0


def test_labels_are_not_asked_for(tmp_path):
    path = table(tmp_path, "a,x", "b,")
    assert [e.labels for e in read_examples(path, need_label=False).examples] == [None, None]
    found = read_examples(path, need_label=False, label="label").examples
    assert [e.labels for e in found] == [("x",), None]
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    found = read_examples(tmp_path / "a.txt", need_label=False).examples
    assert [(e.text, e.row) for e in found] == [("one", 1), ("two", 2)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": " \n", "label": "x"}, "the text is empty"),
        ({"text": None, "label": "x"}, "the text is missing"),
        ({"label": "x"}, "the text is missing"),
        ({"text": 12, "label": "x"}, "the text must be text, not a number"),
        ({"text": ["a"], "label": "x"}, "must be text, not a list"),
        ({"text": "a\ud800", "label": "x"}, "half a character (\\ud800"),
        ({"text": "a", "label": "\udc00"}, "half a character"),
        ({"text": "a", "label": None}, "unlabelled"),
        ({"text": "a", "label": ""}, "unlabelled"),
        ({"text": "a", "label": " "}, "unlabelled"),
        ({"text": "a"}, "unlabelled"),
        ({"text": "a", "label": 0.5}, "a label must be text or a whole number"),
        ({"text": "a", "label": {}}, "not an object"),
    ],
)
def test_refusals_name_the_row(tmp_path, row, says):
    err = refused(lines(tmp_path, {"text": "ok", "label": "x"}, row))
    assert err.row == 2
    assert says in str(err)


@pytest.mark.parametrize(
    ("labels_of_two", "says"),
    [
        (None, "unlabelled"),
        ("x", "must be a list here"),
        (["x", None], "not null"),
        (["x", ""], "unlabelled"),
        ([["x"]], "not a list"),
    ],
)
def test_refusals_of_sets_name_the_row(tmp_path, labels_of_two, says):
    rows = [{"text": "ok", "label": ["x"]}, {"text": "b", "label": labels_of_two}]
    err = refused(lines(tmp_path, *rows))
    assert err.row == 2
    assert says in str(err)


def test_refusals_in_tables(tmp_path):
    assert refused(table(tmp_path, "a,x", ",y")).row == 3
    assert refused(table(tmp_path, "a,x", "b,")).row == 3
    assert "'intent'" in str(refused(table(tmp_path, "a,x"), label="intent"))
    path = table(tmp_path, "a,b,high", header="sentence1,sentence2,score")
    err = refused(path, need_label=False)
    assert (err.row, "must be a number, not text ('high')" in str(err)) == (2, True)
    for value in ("nan", "inf", ""):
        path = table(tmp_path, f"a,b,{value}", header="sentence1,sentence2,score")
        assert refused(path, need_label=False).row == 2
    path = table(tmp_path, "a, ", header="sentence1,sentence2")
    assert "the second text is empty" in str(refused(path, need_label=False))


def test_parquet_lists_are_sets(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a", "b"], "label": [["x", "y"], []]}), path)
    assert labels(path) == [("x", "y"), ()]
