"""One row of chat data, checked: messages, a prompt with its completion, or a text.

Rows of instruction and output, and of the ShareGPT form (`conversations` of from and value), become
messages. Messages keep all they hold (`tool_calls`, `name`, `reasoning_content`, …), because the
model's own chat template decides what it reads; keys that are null are left out, and the arguments
of tool calls that stand as JSON text become the object that templates expect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import check_unicode
from edgelm.runtime.records import Record, json_name
from edgelm.runtime.schema import nearest

Kind = Literal["messages", "instruction", "prompt", "text"]
Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_MAY_BE_EMPTY = ("system", "tool")

# the columns of each kind: all of the first tuple must be there, those of the second may be
COLUMNS: dict[Kind, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "messages": ((("messages",), ("tools",)), (("conversations",), ("system", "tools"))),
    "instruction": ((("instruction", "output"), ("input", "system")),),
    "prompt": ((("prompt", "completion"), ()),),
    "text": ((("text",), ()),),
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row. `messages` is empty for a text, and for a prompt with its completion."""

    path: Path
    row: int
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()  # that the assistant may call, as JSON Schemas
    prompt: str | None = None
    text: str | None = None  # plain text, or what completes `prompt`

    @property
    def asked(self) -> str:
        """What the model is given: equal for two rows that differ in their answers alone."""
        if not self.messages:
            return self.text if self.prompt is None else self.prompt  # type: ignore[return-value]
        given = [m for m in self.messages if m["role"] != "assistant"]
        return "\n".join(str(m.get("content", "")) for m in given) or json.dumps(self.messages[0])

    def content(self) -> list[Any]:
        """All that decides a training, as plain data."""
        return [list(self.messages), list(self.tools), self.prompt, self.text]


def find_kind(
    names: Sequence[str], asked: Kind | None, text: str | None, path: Path
) -> tuple[Kind, dict[str, str]]:
    """(kind of the rows, role of a column -> its name in the file), found by the columns.

    Plain text is taken only where nothing richer is there. `text` names the column of plain texts.
    Raises DataError: no kind fits, or two do and none is `asked` for."""
    known = {name.strip().casefold(): name for name in names}
    if text is not None:
        if text not in names:
            raise DataError(
                f"there is no column {text!r}{nearest(text, list(names))}", path=path,
                hint=f"its columns are {', '.join(names)}",
            )  # fmt: skip
        return "text", {"text": text}
    found: dict[Kind, dict[str, str]] = {}
    for kind, forms in COLUMNS.items():
        for needed, more in forms:
            if kind not in found and all(name in known for name in needed):
                found[kind] = {n: known[n] for n in (*needed, *more) if n in known}
    if asked is not None:
        if asked not in found:
            wanted = " or ".join(" and ".join(needed) for needed, _ in COLUMNS[asked])
            raise DataError(
                f"no rows of the kind {asked!r}: that needs the columns {wanted}", path=path,
                hint=f"its columns are {', '.join(names)}",
            )  # fmt: skip
        return asked, found[asked]
    rich: list[Kind] = [kind for kind in found if kind != "text"]
    if len(rich) > 1:
        raise DataError(
            f"its columns {', '.join(names)} can be read as {' or as '.join(rich)}", path=path,
            hint=f"say which with --data-kind {rich[0]}",
        )  # fmt: skip
    if not found:
        raise DataError(
            f"no conversations or texts in the columns {', '.join(names)}", path=path,
            hint="known are messages, conversations, instruction with output (and input), prompt "
            "with completion, and text; name a column of plain texts with --text-column",
        )  # fmt: skip
    kind: Kind = rich[0] if rich else "text"
    return kind, found[kind]


def read_row(record: Record, kind: Kind, columns: dict[str, str]) -> Conversation:
    """The row, checked. Raises DataError with file and row."""
    where = {"path": record.path, "row": record.row}

    def text(role: str) -> str:
        return _text(record, columns[role])

    def optional(role: str) -> str:
        name = columns.get(role)
        empty = name is None or record.values.get(name) in (None, "")
        return "" if empty else text(role)

    if kind == "text":
        return Conversation(**where, text=text("text"))
    if kind == "prompt":
        return Conversation(**where, prompt=text("prompt"), text=text("completion"))
    system = optional("system") if "system" in columns else ""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    if kind == "instruction":
        given = "\n\n".join(part for part in (text("instruction"), optional("input")) if part)
        messages.append({"role": "user", "content": given})
        messages.append({"role": "assistant", "content": text("output")})
        return Conversation(**where, messages=tuple(messages))
    turns = _list(record, columns["messages" if "messages" in columns else "conversations"])
    messages += [_message(record, number, turn) for number, turn in enumerate(turns, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise _fault(
            record, "no message is the assistant's, so there is nothing to learn or to compare"
        )
    tools = columns.get("tools")
    listed = [] if tools is None or not record.values.get(tools) else _list(record, tools)
    for tool in listed:
        if not isinstance(tool, dict):
            raise _fault(record, f"a tool must be a JSON Schema object, not {json_name(tool)}")
        _check_all(tool, "a tool", record)
    return Conversation(**where, messages=tuple(messages), tools=tuple(listed))


def _message(record: Record, number: int, turn: Any) -> Message:
    """One turn as a message with role and content. Raises DataError."""
    if not isinstance(turn, dict):
        raise _fault(record, f"message {number} must be an object, not {json_name(turn)}")
    message = {key: value for key, value in cast("Message", turn).items() if value is not None}
    if "role" not in message and "from" in message:  # ShareGPT
        message["role"] = _SHAREGPT_ROLES.get(str(message["from"]), message["from"])
        message["content"] = message.pop("value", None)
        del message["from"]
    role = message.pop("role", None)
    if not isinstance(role, str) or not role:
        raise _fault(record, f"message {number} has no role")
    if role not in ROLES:
        raise _fault(
            record,
            f"message {number}: unknown role {role!r}{nearest(role, ROLES)}",
            hint=f"roles are {', '.join(ROLES)}",
        )
    who = f"message {number} ({role})"
    calls = message.get("tool_calls")
    if calls is not None:
        if role != "assistant":
            raise _fault(record, f"{who}: only the assistant's messages hold tool_calls")
        message["tool_calls"] = _calls(record, who, calls)
    content = message.pop("content", None)
    if content is not None or not calls:
        content = _joined(record, who, content)
        if not content.strip() and role not in _MAY_BE_EMPTY and not calls:
            raise _fault(record, f"{who} is empty")
        message = {"content": content, **message}
    _check_all(message, who, record)
    return {"role": role, **message}


def _joined(record: Record, who: str, content: Any) -> str:
    """The content as text; a list of text parts, as some services write it, is put together."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        kinds = {part.get("type", "text") if isinstance(part, dict) else None for part in parts}
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        if kinds <= {"text"} and all(isinstance(text, str) for text in texts):
            return "".join(cast("list[str]", texts))
        raise _fault(record, f"{who}: its content holds more than text")
    if not isinstance(content, str):
        raise _fault(record, f"{who}: its content must be text, not {json_name(content)}")
    return content


def _calls(record: Record, who: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _fault(record, f"{who}: tool_calls must be a list, not {json_name(calls)}")
    found: list[dict[str, Any]] = []
    for call in cast("list[Any]", calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _fault(record, f"{who}: a tool call must be an object that names its function")
        arguments = cast("dict[str, Any]", function).get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(record, f"{who}: the arguments of {function['name']!r}", arguments)
        function = {**cast("dict[str, Any]", function), "arguments": arguments}
        found.append({**call, "function": function} if "function" in call else function)
    return found


def _parsed(record: Record, what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _fault(record, f"{what} are not valid JSON: {err}") from err


def _list(record: Record, column: str) -> list[Any]:
    """A list of the row; in a table it stands as JSON text."""
    value = record.values.get(column)
    if isinstance(value, str) and value.strip():
        value = _parsed(record, f"the {column}", value)
    if not isinstance(value, list) or not value:
        said = "missing" if value is None else "empty" if value in ([], "") else json_name(value)
        raise _fault(record, f"{column!r} must be a list with something in it, it is {said}")
    return cast("list[Any]", value)


def _text(record: Record, column: str) -> str:
    value = record.values.get(column)
    if value is None:
        raise _fault(record, f"{column!r} is missing")
    if not isinstance(value, str):
        raise _fault(record, f"{column!r} must be text, not {json_name(value)}")
    if not value.strip():
        raise _fault(record, f"{column!r} is empty")
    check_unicode(value, repr(column), record)
    return value


def _check_all(value: Any, what: str, record: Record) -> None:
    check_unicode(json.dumps(value, ensure_ascii=False, default=str), what, record)


def _fault(record: Record, message: str, hint: str | None = None) -> DataError:
    return DataError(message, path=record.path, row=record.row, hint=hint)
