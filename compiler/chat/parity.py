"""Whether the runtime's tokenizer and chat template give the model's own token ids and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from edgelm.compiler.chat.conversation import Conversation, Message
from edgelm.compiler.nasty import NASTY
from edgelm.runtime.errors import InputError, VerificationError
from edgelm.runtime.generate.template import ChatTemplate
from edgelm.runtime.metrics import first_difference
from edgelm.runtime.tokenizer import Tokenizer


def texts_of(tokenizer: Any, rows: Sequence[Conversation]) -> list[tuple[str, bool]]:
    """All texts of the evaluation data and the awkward ones; whether special tokens are added."""
    found = [(text, special) for text in NASTY for special in (False, True)]
    for row in rows:
        if row.messages:
            found.append((_rendered(tokenizer, row, row.messages, ask=False), False))
        found += [(text, True) for text in (row.prompt, row.text) if text is not None]
    return found


def check_prompt_ids(tokenizer: Any, runtime: Tokenizer, texts: Sequence[tuple[str, bool]]) -> None:
    """Raise VerificationError unless the runtime's token ids are the Hugging Face tokenizer's."""
    for text, special in texts:
        theirs: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        ours = runtime.prompt_ids(text, special=special)
        if ours != theirs:
            raise VerificationError(
                f"token ids of {text[:80]!r} differ: Hugging Face gives {theirs[:16]}, the "
                f"bundle's tokenizer {ours[:16]}",
                hint="the model's tokenizer does more than its tokenizer.json says",
            )


def check_template(tokenizer: Any, template: ChatTemplate, rows: Sequence[Conversation]) -> None:
    """Raise VerificationError unless the runtime renders each conversation, whole and cut before
    its last message, as Hugging Face does."""
    for row in rows:
        for messages, ask in ((row.messages, False), (row.messages[:-1], True)):
            if not messages:
                continue
            tools = row.tools or None
            try:
                theirs = _rendered(tokenizer, row, messages, ask=ask)
            except TemplateError as err:  # not every template takes every beginning
                _check_refused(template, row, messages, ask=ask, why=str(err))
                continue
            ours = template.render(messages, add_generation_prompt=ask, tools=tools)
            at = first_difference(ours, theirs)
            if at is not None:
                near = slice(max(0, at - 20), at + 20)
                raise VerificationError(
                    f"{row.path}, row {row.row}: the chat template gives {ours[near]!r} where "
                    f"Hugging Face gives {theirs[near]!r}"
                )


def _check_refused(
    template: ChatTemplate, row: Conversation, messages: Sequence[Message], *, ask: bool, why: str
) -> None:
    """Raise VerificationError unless the runtime refuses what Hugging Face refuses."""
    try:
        template.render(messages, add_generation_prompt=ask, tools=row.tools or None)
    except InputError:
        return
    raise VerificationError(
        f"{row.path}, row {row.row}: Hugging Face's chat template refuses it ({why}), ours does not"
    )


def _rendered(tokenizer: Any, row: Conversation, messages: Sequence[Message], *, ask: bool) -> str:
    """What Hugging Face makes of the messages; `ask` begins the assistant's answer."""
    tools = list(row.tools) or None
    return tokenizer.apply_chat_template(
        list(messages), tools=tools, tokenize=False, add_generation_prompt=ask
    )
