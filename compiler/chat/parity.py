"""Whether the runtime's tokenizer and chat template give the model's own token ids and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgelm.compiler.chat.conversation import Conversation
from edgelm.compiler.chat.template import Template
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
            found.append((Template(tokenizer, row).render(row.messages), False))
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
    its last message, as Hugging Face does, and refuses what that refuses.

    template: the model's, `on_a_fixed_day`."""
    for row in rows:
        if not row.messages:
            continue
        hugging_face = Template(tokenizer, row)
        for messages, ask in ((row.messages, False), (row.messages[:-1], True)):
            if not messages:
                continue
            theirs = hugging_face.try_render(messages, prompt=ask)
            try:
                ours = template.render(messages, add_generation_prompt=ask, tools=row.tools or None)
            except InputError:
                ours = None
            if ours != theirs:
                raise VerificationError(f"{row.path}, row {row.row}: {_difference(ours, theirs)}")


def _difference(ours: str | None, theirs: str | None) -> str:
    if ours is None or theirs is None:
        who = ("ours", "Hugging Face's") if ours is None else ("Hugging Face's", "ours")
        return f"{who[0]} chat template refuses it, {who[1]} does not"
    at = first_difference(ours, theirs) or 0
    near = slice(max(0, at - 20), at + 20)
    return f"the chat template gives {ours[near]!r} where Hugging Face gives {theirs[near]!r}"
