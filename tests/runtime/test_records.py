"""Rows of data files: what is read, and what is refused with file and row."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.runtime.errors import DataError, MissingExtra
from edgelm.runtime.lines import text_lines
from edgelm.runtime.records import read_records

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path) -> list[tuple[int, dict[str, object]]]:
    return [(record.row, record.values) for record in read_records(path)]


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("records")


@given(table=st.lists(st.tuples(cells, cells), min_size=1, max_size=5), tabs=st.booleans())
@settings(max_examples=60)
def test_what_the_csv_module_writes_comes_back(folder, table, tabs):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if tabs else ",")
    writer.writerows([("text", "label"), *table])
    path = write(folder, "a.tsv" if tabs else "a.csv", text.getvalue())
    try:
        found = [(r["text"], r["label"]) for _, r in rows(path)]
    except DataError as err:  # a tsv in which a quote may mean two things is refused, not guessed
        if not tabs or "one field or many rows" not in str(err):
            raise
    else:
        assert found == table


@given(table=st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), min_size=1))
@settings(max_examples=60)
def test_what_the_json_module_writes_comes_back(folder, table):
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(table)]
    for content, name in (("\n".join(lines), "a.jsonl"), (json.dumps(table), "a.json")):
        assert rows(write(folder, name, content)) == list(enumerate(table, 1))


def test_rows_are_lines_of_the_file(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\r\n"one\r\ntwo",x\r\n\r\nthree,y\r\n')
    assert rows(path) == [
        (2, {"text": "one\r\ntwo", "label": "x"}),
        (5, {"text": "three", "label": "y"}),
    ]
    assert [row for row, _ in rows(write(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}'))] == [2, 4]
    assert rows(write(tmp_path, "a.txt", "one\n\n  two\r\n")) == [
        (1, {"text": "one"}),
        (3, {"text": "  two"}),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_what_stands_between_line_feeds(tmp_path, encoding):
    texts = ["one\u2028still one", "two\x0b\x0c\x85", "", " three\rtoo ", "four"]
    content = f"{texts[0]}\n{texts[1]}\r\n\n{texts[3]}\r\n{texts[4]}"
    path = write(tmp_path, "a.txt", content.encode(encoding))
    assert list(text_lines(path)) == texts
    assert [row["text"] for _, row in rows(path)] == [text for text in texts if text]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding):
    table = "text,label\nnaïve 酒店 😀,x\n".encode(encoding)
    expected = [(2, {"text": "naïve 酒店 😀", "label": "x"})]
    assert rows(write(tmp_path, "a.csv", table)) == expected
    assert rows(write(tmp_path, "a.csv.gz", gzip.compress(table))) == expected


def test_the_separator_is_taken_from_the_header_alone(tmp_path):
    assert rows(write(tmp_path, "a.csv", "text;label\na,b;x\n")) == [
        (2, {"text": "a,b", "label": "x"})
    ]
    assert rows(write(tmp_path, "b.csv", "text,label\na;b,x\n")) == [
        (2, {"text": "a;b", "label": "x"})
    ]
    assert rows(write(tmp_path, "c.csv", ",text\n0,a\n")) == [(2, {"text": "a"})]


def test_stray_quotes_in_a_tsv_swallow_no_rows(tmp_path):
    lines = ["label\ttext", '0\t"open', '1\t"a" and b', '0\t"whole"', "1\tc"]
    found = rows(write(tmp_path, "a.tsv", "\n".join(lines)))
    assert [r["text"] for _, r in found] == ['"open', '"a" and b', "whole", "c"]
    err = refused(write(tmp_path, "b.tsv", 'label\ttext\n0\t"open\n1\t5"\n'))
    assert err.row == 2
    assert "one field or many rows" in str(err)
    quoted = 'label\ttext\n0\t"two\nlines"\n'
    assert rows(write(tmp_path, "c.tsv", quoted)) == [(2, {"label": "0", "text": "two\nlines"})]


def test_shapes_of_json(tmp_path):
    expected = [(1, {"a": 1}), (2, {"a": 2})]
    assert rows(write(tmp_path, "a.json", '[{"a": 1}, {"a": 2}]')) == expected
    assert (
        rows(write(tmp_path, "b.json", '{"version": 1, "data": [{"a": 1},{"a": 2}]}')) == expected
    )
    assert rows(write(tmp_path, "c.json", '{"a": 1}\n{"a": 2}\n')) == expected
    assert rows(write(tmp_path, "d.json", '{\n"a": 1\n}\n')) == expected[:1]


CASES = {
    "empty": ("a.csv", "", None, "empty"),
    "only a mark": ("a.csv", b"\xef\xbb\xbf", None, "empty"),
    "header only": ("a.csv", "text,label\n", None, "no rows"),
    "empty array": ("a.json", "[]", None, "no rows"),
    "blank lines": ("a.jsonl", "\n\n", None, "no rows"),
    "few fields": ("a.csv", "text,label\na,x\nb\n", 3, "1 fields, but the header names 2"),
    "many fields": ("a.csv", 'text,label\n"a\nb",x\nb,y,z\n', 4, "3 fields"),
    "ragged tsv": ("a.tsv", "text\tlabel\na\tb\tc\n", 2, "3 fields"),
    "columns twice": ("a.csv", "text,text\na,b\n", 1, "two columns are named 'text'"),
    "no names": ("a.csv", ",\na,b\n", 1, "names no column"),
    "open quote": ("a.csv", 'text,label\nok,x\n"a,x\nb,y\n', 3, "not valid CSV"),
    "text after quote": ("a.csv", 'text,label\n"a" b,x\n', 2, "not valid CSV"),
    "bare CR": ("a.csv", "text,label\na\rb,x\n", 2, "not valid CSV"),
    "latin-1": ("a.csv", "text,label\nok,x\nna\xefve,y\n".encode("latin-1"), 3, "is not UTF-8"),
    "utf-16, no mark": ("a.csv", "text,label\n".encode("utf-16-le"), 1, "NUL"),
    "utf-16, cut": ("a.csv", "text,label\na,x".encode("utf-16") + b"\x00", None, "UTF-16"),
    "NUL": ("a.csv", "text,label\na\0,x\n", 2, "NUL"),
    "NUL in jsonl": ("a.jsonl", '{"a": 1}\n{"a": "\0"}', 2, "NUL"),
    "broken json line": ("a.jsonl", '{"a": 1}\n{"a": }\n', 2, "not valid JSON"),
    "broken json": ("a.json", '[{"a": 1},\n{"a"}]', 2, "not valid JSON"),
    "json scalar": ("a.json", "3", None, "neither an array"),
    "json array of text": ("a.json", '["a"]', 1, "must be a JSON object, not text"),
    "a list for a row": ("a.jsonl", "{}\n[1]\n", 2, "not a list"),
    "key twice": ("a.jsonl", '{"a": 1, "a": 2}', 1, "'a' stands twice"),
    "NaN": ("a.jsonl", '{"a": NaN}', 1, "NaN is not JSON"),
    "deep": ("a.jsonl", "{}\n" + "[" * 200_000, 2, "nested too deep"),
    "deep array": ("a.json", "[" * 200_000, None, "nested too deep"),
    "unknown suffix": ("a.xlsx", "a", None, "unknown kind of file '.xlsx'"),
    "not gzip": ("a.csv.gz", "text,label\n", None, "cannot be read"),
    "cut gzip": ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99)[:-9], None, "gzip"),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_name_file_and_row(tmp_path, case):
    name, content, row, says = CASES[case]
    err = refused(write(tmp_path, name, content))
    assert says in str(err)
    assert row is None or err.row == row


def test_long_fields_are_read_and_hostile_ones_refused(tmp_path):
    long = "x" * 300_000  # over the csv module's own limit
    assert rows(write(tmp_path, "a.csv", f"text,label\n{long},a\n"))[0][1]["text"] == long
    err = refused(write(tmp_path, "b.csv", "text,label\n" + "y" * (17 * 2**20)))
    assert (err.row, "longer than" in str(err)) == (2, True)
    many = '"' + ("z" * 2**20 + "\n") * 17
    err = refused(write(tmp_path, "c.csv", f'text,label\n{many}",a\n'))
    assert (err.row, "field larger than field limit" in str(err)) == (2, True)


def test_places_that_cannot_be_read(tmp_path, monkeypatch):
    assert "no such file" in str(refused(tmp_path / "missing.csv"))
    assert "cannot be read" in str(refused(write(tmp_path, "a.csv", "x") / "b.csv"))
    assert "cannot be read" in str(refused(tmp_path / ("n" * 400 + ".csv")))
    empty = tmp_path / "empty"
    empty.mkdir()
    write(empty, "README.md", "hello")
    assert "no data file" in str(refused(empty))
    write(empty, "state.json", "{}")
    write(empty, "dataset_info.json", "{}")
    assert "`datasets`" in str(refused(empty))

    def forbid(*_args: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    assert "Permission denied" in str(refused(tmp_path / "a.csv"))


def test_a_folder_is_read_in_order_of_names(tmp_path):
    write(tmp_path, "b.jsonl", '{"label": "y", "text": "two"}')
    write(tmp_path, "a.csv", "text,label\none,x\n")
    write(tmp_path, "LICENSE.txt", "not data")
    write(tmp_path, ".hidden.csv", "what\n")
    found = list(read_records(tmp_path))
    assert [(r.path.name, r.values["text"]) for r in found] == [
        ("a.csv", "one"),
        ("b.jsonl", "two"),
    ]
    write(tmp_path, "c.csv", "text,topic\nthree,x\n")
    with pytest.raises(DataError, match=r"c\.csv") as caught:
        list(read_records(tmp_path))
    assert "label, text" in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    lines = {
        "a.csv": "text,label\n" + '"some text, of some length",x\n' * 15_000,
        "a.tsv": "text\tlabel\n" + '"some text of some length"\tx\n' * 15_000,
        "a.jsonl": '{"text": "some text of some length", "label": "x"}\n' * 15_000,
        "a.txt": "some text of some length\n" * 15_000,
    }
    path = write(tmp_path, name, lines[name])
    assert next(read_records(path))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 15_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 < path.stat().st_size


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = arrow.table({"text": ["a", "b", None], "label": [1, 0, -1]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=2)
    assert rows(path)[2] == (3, {"text": None, "label": -1})
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    assert [r["label"] for _, r in rows(path)] == ["good", "bad", None]
    short = {"label": {"names": ["bad"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": short}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    assert refused(path).row == 1
    assert "parquet" in str(refused(write(tmp_path, "b.parquet", "PAR1 no")))
    assert "no such file" in str(refused(tmp_path / "c.parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra) as caught:
        list(read_records(write(tmp_path, "a.parquet", "x")))
    assert "edgelm[parquet]" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "last"),
    [
        ("banking77/train.csv", 10_003, 10_017),
        ("chnsenticorp_zh/train.tsv", 9_600, 9_601),  # a csv reader finds 9,146
        ("sentfin/SEntFiN.csv", 10_753, 10_754),
        ("tnews_zh/train_few_all.json", 1_185, 1_185),
        ("bitext_support/train_small.jsonl", 1_000, 1_000),
    ],
)
def test_real_files(name, n, last):
    if not (SHARED / name).is_file():
        pytest.skip(f"the real data {name} is not beside the project")
    found = [record.row for record in read_records(SHARED / name)]
    assert (len(found), found[-1]) == (n, last)
