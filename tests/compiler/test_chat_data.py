"""Chat data: kinds of rows, faults by file and row, what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import chat, chat_rows
from tiny_data import write_jsonl

from edgelm.compiler.chat.data import ChatData, load_chat_data
from edgelm.compiler.sections import DataConfig
from edgelm.runtime.errors import DataError


def load(
    path: Path | None, held_out: Path | None = None, *, trained: bool = True, **how: Any
) -> ChatData:
    config = DataConfig(
        train=None if path is None else str(path),
        eval=None if held_out is None else str(held_out),
        **how,
    )
    return load_chat_data(config, trained=trained, seed=0)


def one(tmp_path: Path, *rows: dict[str, Any], **how: Any) -> Any:
    """The first of these rows, as it is read."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return load(None, path, trained=False, **how).eval[0]


CALL = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": '{"id": 7}'}}


def test_messages_keep_all_they_hold(tmp_path):
    row = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "where "}, {"text": "is it"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None},
            {"role": "tool", "content": "on its way", "tool_call_id": "c1"},
            {"role": "assistant", "content": "on its way", "reasoning_content": "hm"},
        ],
        "tools": [{"type": "function", "function": {"name": "find"}}],
        "id": 3,
    }
    found = one(tmp_path, row)
    call = {**CALL, "function": {"name": "find", "arguments": {"id": 7}}}
    assert list(found.messages) == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "where is it"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "on its way", "tool_call_id": "c1"},
        {"role": "assistant", "content": "on its way", "reasoning_content": "hm"},
    ]
    assert found.tools == tuple(row["tools"])
    assert (found.path, found.row) == (tmp_path / "rows.jsonl", 1)


def test_sharegpt(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    found = one(tmp_path, {"conversations": turns, "system": "be kind"})
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant"]
    assert [m["content"] for m in found.messages] == ["be kind", "hi", "hello"]


def test_instructions(tmp_path):
    found = one(tmp_path, {"Instruction": "add", "input": "1 2", "output": "3", "text": "…"})
    assert found.messages[0] == {"role": "user", "content": "add\n\n1 2"}
    assert found.messages[1] == {"role": "assistant", "content": "3"}
    found = one(tmp_path, {"instruction": "add", "input": "", "output": "3"})
    assert found.messages[0]["content"] == "add"


def test_prompts_and_texts(tmp_path):
    found = one(tmp_path, {"prompt": "1 + 2 =", "completion": " 3"})
    assert (found.messages, found.prompt, found.text) == ((), "1 + 2 =", " 3")
    found = one(tmp_path, {"text": "a story"})
    assert (found.messages, found.prompt, found.text) == ((), None, "a story")
    found = one(tmp_path, {"body": "a story", "prompt": "no"}, text="body")
    assert found.text == "a story"
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\nthree\n")
    data = load(lines)
    assert (len(data.train), len(data.eval), data.report.kind) == (2, 1, "text")


def test_tables_parquet_and_directories_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = chat_rows(6)
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "stored"))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    cells = "\n".join('"' + json.dumps(r["messages"]).replace('"', '""') + '"' for r in rows)
    (tmp_path / "rows.csv").write_text(f"messages\n{cells}\n")
    write_jsonl(tmp_path / "rows.jsonl", rows)
    digests = {
        load(tmp_path / name).digest()
        for name in ("rows.jsonl", "rows.json", "rows.parquet", "rows.csv", "stored")
    }
    assert len(digests) == 1


GOOD = chat("hi", "hello")
FAULTS = [
    ({"messages": []}, "'messages' must be a list with something in it, it is empty"),
    ({"messages": None}, "'messages' must be a list with something in it, it is missing"),
    ({"messages": 5}, "it is a number"),
    ({"messages": "[{"}, "the messages are not valid JSON"),
    ({"messages": ["hi"]}, "message 1 must be an object, not text"),
    ({"messages": [{"content": "hi"}]}, "message 1 has no role"),
    (
        {"messages": [{"role": "asistant", "content": "hi"}]},
        r"message 1: unknown role 'asistant' \(did you mean 'assistant'\?\)",
    ),
    ({"messages": GOOD["messages"][:1]}, "no message is the assistant's"),
    (chat("hi", " "), r"message 2 \(assistant\) is empty"),
    (chat("hi", "a\ud800b"), r"message 2 \(assistant\) holds half a character"),
    (chat("hi", 3), "its content must be text, not a number"),  # type: ignore[arg-type]
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        r"message 1 \(user\): its content holds more than text",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
        "only the assistant's messages hold tool_calls",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "a tool call must be an object that names its function",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                }
            ]
        },
        "the arguments of 'f' are not valid JSON",
    ),
    ({**GOOD, "tools": ["f"]}, "a tool must be a JSON Schema object, not text"),
]


@pytest.mark.parametrize(("row", "says"), FAULTS, ids=range(len(FAULTS)))
def test_faults_name_file_and_row(tmp_path, row, says):
    path = write_jsonl(tmp_path / "rows.jsonl", [{**GOOD, "tools": None}, row])
    with pytest.raises(DataError, match=says) as caught:
        load(path)
    assert (caught.value.path, caught.value.row) == (path, 2)
    assert str(caught.value).startswith(f"{path}, row 2: ")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"instruction": "a", "output": "b"}, {"instruction": "a"}], "'output' is missing"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}], "is empty"),
        ([{"text": "a"}, {"text": ["b"]}], "'text' must be text, not a list"),
        ([{"text": "a"}, {"text": "b\udc00"}], "'text' holds half a character"),
    ],
)
def test_faults_of_the_other_kinds(tmp_path, rows, says):
    with pytest.raises(DataError, match=f"row 2: .*{says}"):
        load(write_jsonl(tmp_path / "rows.jsonl", rows))


def test_broken_files_name_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n{\xff}\n")
    with pytest.raises(DataError, match="row 2: byte 0xff"):
        load(path)
    path.write_text(json.dumps(GOOD) + '\n{"messages": [}\n')
    with pytest.raises(DataError, match="row 2: not valid JSON"):
        load(path)


def test_kinds_that_cannot_be_told(tmp_path):
    row = {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}
    with pytest.raises(DataError, match="as instruction or as prompt") as caught:
        one(tmp_path, row)
    assert "--data-kind" in str(caught.value.hint)
    assert one(tmp_path, row, kind="prompt").prompt == "a"
    with pytest.raises(DataError, match="no rows of the kind 'messages'"):
        one(tmp_path, row, kind="messages")
    with pytest.raises(DataError, match="no conversations or texts in the columns a, b"):
        one(tmp_path, {"a": "x", "b": "y"})
    with pytest.raises(DataError, match="no column 'txt'"):
        one(tmp_path, {"text": "x"}, text="txt")


def test_a_part_is_held_out_by_what_is_asked(tmp_path):
    rows = [*chat_rows(20), chat("where is my order 0", "another answer")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = load(path)
    assert (len(data.train), len(data.eval)) == (19, 2) or len(data.eval) == 3
    asked = {row.asked for row in data.train}
    assert not asked & {row.asked for row in data.eval}
    assert load(path).digest() == data.digest()
    other = load_chat_data(DataConfig(train=str(path)), trained=True, seed=1)
    assert [r.row for r in other.eval] != [r.row for r in data.eval]
    assert "held out" in data.report.notes[0]


def test_rows_on_both_sides_are_left_out(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", chat_rows(5))
    rows = [chat("Where is  MY order 0", "no idea"), *chat_rows(2, start=50)]
    held_out = write_jsonl(tmp_path / "eval.jsonl", rows)
    data = load(train, held_out)
    assert (data.report.n_overlap, len(data.eval), data.report.n_train) == (1, 2, 5)
    assert "1 of 3 evaluation texts also stand in the training data" in data.report.notes[0]
    assert data.report.overlap_examples[0].eval_row == 1
    with pytest.raises(DataError, match="all of it stands in the training data"):
        load(train, train)
    with pytest.raises(DataError, match="too few"):
        load(write_jsonl(tmp_path / "one.jsonl", chat_rows(1)))
