"""The model's own chat template, at work on one conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from edgelm.compiler.chat.conversation import Conversation, Message
from edgelm.runtime.errors import DataError, ModelError

MARK = "\u2039edgelm\u203a"  # put in place of a content to see where the template writes it
# The date that Llama's templates fall back on.
_TODAY = datetime(2024, 7, 26)
_DATE_CODES = [f"%{code}" for code in (*"aAbBdHIjmMpSUwWyY", "-d", "-m", "-H", "-I")]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def on_a_fixed_day(source: str) -> str:
    """The template with a `strftime_now` of its own, where it calls that: samples, golden texts and
    the checks of prompts must not differ by the day of the compile."""
    if "strftime_now" not in source:
        return source
    told = "".join(f" | replace('{code}', '{_TODAY.strftime(code)}')" for code in _DATE_CODES)
    # the new line is the block's, and the template still begins a line
    return f"{{% macro strftime_now(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n{source}"


def require_template(tokenizer: Any, rows: Iterable[Conversation]) -> None:
    """Raises ModelError where rows need a chat template and the model has none."""
    if any(row.messages for row in rows):
        Template(tokenizer)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind an answer; None where it writes none."""
    return None if tokenizer.chat_template is None else Template(tokenizer).end_id


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no text: the named ones, and those that are marked so."""
    marked = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset(int(i) for i in (*tokenizer.all_special_ids, *marked) if i is not None)


class Template:
    """The tokenizer's chat template at work on one conversation."""

    def __init__(self, tokenizer: Any, conversation: Conversation | None = None) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.tools = list(conversation.tools) if conversation and conversation.tools else None
        if tokenizer.chat_template is None:
            raise ModelError(
                "the model has no chat template, so it does not say how messages are written",
                hint="take an instruction-tuned model, or give data with the columns prompt and "
                "completion, or text",
            )
        self.source = on_a_fixed_day(tokenizer.get_chat_template(None, self.tools))
        self.special_ids = special_ids(tokenizer)
        self.end_id = _end_id(self)
        self.has_marks = _GENERATION.search(self.source) is not None

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text. Raises DataError with what the template says."""
        try:
            return self._render(messages, prompt)
        except _errors() as err:
            raise self.fault(f"refuses this conversation: {err}") from err

    def try_render(self, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
        """The text, or None: templates may refuse a part of a conversation."""
        if not messages:
            return None
        try:
            return self._render(messages, prompt)
        except _errors():
            return None

    def tokenize(self, messages: Sequence[Message]) -> Any:
        """Ids and the mask of the template's own marks."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=self.tools, chat_template=self.source, return_dict=True,
                return_assistant_tokens_mask=True,
            )  # fmt: skip
        except _errors() as err:
            raise self.fault(f"refuses this conversation: {err}") from err

    def fault(self, says: str) -> DataError:
        """An error that names the row."""
        row = self.conversation
        return DataError(
            f"the model's chat template {says}",
            path=row and row.path, row=row and row.row,
            hint="fit the data to the template; `{% generation %}` marks in the template tell "
            "plainly which tokens are the assistant's",
        )  # fmt: skip

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tools=self.tools, chat_template=self.source, tokenize=False,
            add_generation_prompt=prompt,
        )  # fmt: skip


def _errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    # a template is a program of the model's: it fails in these ways on what it was not made for
    return (TemplateError, TypeError, ValueError, KeyError, AttributeError)


def _end_id(template: Template) -> int | None:
    """Seen in a conversation of three turns: of the special tokens right behind the answer the
    tokenizer's end token, or else the first."""
    turns = [("user", "a"), ("assistant", MARK), ("user", MARK)]
    text = template.try_render([{"role": role, "content": said} for role, said in turns]) or ""
    if text.count(MARK) != 2:
        return None
    behind = text.split(MARK)[1]
    tokenizer = template.tokenizer
    found: list[int] = []
    for i in tokenizer(behind, add_special_tokens=False)["input_ids"]:
        if i in template.special_ids:
            found.append(int(i))
        elif tokenizer.decode([i]).strip():
            break
    if tokenizer.eos_token_id in found:
        return int(tokenizer.eos_token_id)
    return found[0] if found else None
