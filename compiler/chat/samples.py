"""Conversations and texts as token ids, and which of them the model is to learn.

A conversation is rendered by the model's own chat template and tokenized once, as at run time; the
targets are the assistant's tokens, up to the token that ends its turn. Where they stand is told by
the template's `{% generation %}` marks; without these by rendering the conversation up to each
answer. Where such a rendering is no prefix of the whole (templates that drop the reasoning of
earlier turns, or that put the system text into the last question), the answer is found by a mark
put in its place. What can not be told for sure is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.compiler.chat.conversation import Conversation
from edgelm.compiler.chat.template import MARK, Template

PROMPT_TAIL = 8  # characters at the end of a prompt that tell it

Span = tuple[int, int]  # characters of a text, or places of tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation or text. Position t is a target when token t is predicted from those before
    it and counts in the loss; the first token is none."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    is_cut: bool = False  # whether tokens over max_tokens were left out

    @property
    def n_targets(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.targets)


@dataclass(frozen=True)
class Samples:
    """All samples of one part of the data that have a target."""

    samples: tuple[Sample, ...]
    rows: tuple[int, ...]  # of which conversation each sample is
    n_truncated: int  # conversations longer than max_tokens
    n_dropped: int  # of these, with no target left

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def n_targets(self) -> int:
        """Tokens that count in the loss."""
        return sum(sample.n_targets for sample in self.samples)

    def notes(self, what: str, max_tokens: int) -> list[str]:
        """What is said of truncation, in words."""
        if not self.n_truncated:
            return []
        dropped = f", {self.n_dropped} of them left out: no answer begins before that"
        return [
            f"{self.n_truncated} of {len(self.samples) + self.n_dropped} {what} rows are longer "
            f"than {max_tokens} tokens and truncated{dropped if self.n_dropped else ''}"
        ]


def render_all(
    rows: Sequence[Conversation], tokenizer: Any, max_tokens: int, *, keep_all: bool = False
) -> Samples:
    """Samples of all rows; those without a target left are dropped and counted, or `keep_all`."""
    rendered = [render(row, tokenizer, max_tokens) for row in rows]
    kept = [i for i, sample in enumerate(rendered) if keep_all or sample.n_targets]
    return Samples(
        samples=tuple(rendered[i] for i in kept),
        rows=tuple(kept),
        n_truncated=sum(sample.is_cut for sample in rendered),
        n_dropped=len(rendered) - len(kept),
    )


def render(conversation: Conversation, tokenizer: Any, max_tokens: int) -> Sample:
    """The sample of one row, cut on the right. Raises DataError, naming the row."""
    if conversation.messages:
        ids, targets = _chat(conversation, tokenizer)
    else:
        ids, targets = _text(conversation, tokenizer)
    targets[0] = False
    is_cut = len(ids) > max_tokens
    return Sample(tuple(ids[:max_tokens]), tuple(targets[:max_tokens]), is_cut)


def prompt_of(conversation: Conversation, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that ask for the last answer: of a chat all before the assistant's last message,
    of a prompt the prompt, of a text its first half."""
    if conversation.messages:
        template = Template(tokenizer, conversation)
        last = max(i for i, m in enumerate(conversation.messages) if m["role"] == "assistant")
        text = template.render(conversation.messages[:last], prompt=True)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if conversation.prompt is not None:
        return tuple(_without_end(tokenizer, tokenizer(conversation.prompt)["input_ids"]))
    ids = _without_end(tokenizer, tokenizer(conversation.text)["input_ids"])
    return tuple(ids[: max(1, len(ids) // 2)])


def _text(conversation: Conversation, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Plain text, all of it a target, or a prompt and its completion; the end token closes both."""
    prompt = conversation.prompt or ""
    encoded = _encode(tokenizer, prompt + str(conversation.text), special=True)
    start = _boundary(tokenizer, encoded, len(prompt), is_stop=False) if prompt else 0
    ids = _without_end(tokenizer, encoded.ids)
    targets = [i >= start for i in range(len(ids))]
    if tokenizer.eos_token_id is not None:
        ids, targets = [*ids, int(tokenizer.eos_token_id)], [*targets, True]
    return ids, targets


def _without_end(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Some tokenizers close a text by themselves."""
    closed = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return list(ids[:-1] if closed else ids)


def _chat(conversation: Conversation, tokenizer: Any) -> tuple[list[int], list[bool]]:
    template = Template(tokenizer, conversation)
    if template.has_marks:
        return _by_marks_of_template(conversation, template)
    whole = template.render(conversation.messages)
    encoded = _encode(tokenizer, whole, special=False)
    targets = [False] * len(encoded.ids)
    for i, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            start, stop = _answer(template, encoded, i)
            targets[start:stop] = [True] * (stop - start)
    return encoded.ids, targets


def _by_marks_of_template(
    conversation: Conversation, template: Template
) -> tuple[list[int], list[bool]]:
    found = template.tokenize(conversation.messages)
    ids, targets = list(found["input_ids"]), [bool(x) for x in found["assistant_masks"]]
    if not any(targets):
        raise template.fault("marks no token of this conversation as the assistant's")
    end_id = template.end_id
    for t in range(1, len(ids)):  # marks that stop short of the end of the turn
        if targets[t - 1] and not targets[t] and ids[t] == end_id and ids[t - 1] != end_id:
            targets[t] = True
    return ids, targets


def _answer(template: Template, encoded: _Encoded, i: int) -> Span:
    """The tokens of the answer in message i, up to the one that ends the turn."""
    assert template.conversation is not None
    tokenizer, messages, whole = template.tokenizer, template.conversation.messages, encoded.text
    content = _content_span(template, whole, i)
    before = template.try_render(messages[:i], prompt=True)
    if before and whole.startswith(before):
        place = len(before)
    elif content is None:
        raise template.fault(f"does not show where the answer in message {i + 1} begins")
    else:
        place = content[0]
        blank = place - len(whole[:place].rstrip())
        if before and blank and before.endswith(whole[:place].rstrip()[-PROMPT_TAIL:]):
            place -= blank  # the prompt ends before the white space, so the model has to write it
    start = _boundary(tokenizer, encoded, place, is_stop=False)
    if content is None or content[1] < place:
        behind = start
    else:
        behind = _boundary(tokenizer, encoded, content[1], is_stop=True)
    after = whole if i == len(messages) - 1 else template.try_render(messages[: i + 1])
    if after and whole.startswith(after) and len(after) > place:
        stop, is_exact = _boundary(tokenizer, encoded, len(after), is_stop=True), True
    else:  # what follows the end of the turn may be in it, up to the next message's content
        following = _content_span(template, whole, i + 1) or (0, 0)
        stop, is_exact = _boundary(tokenizer, encoded, following[0], is_stop=False), False
    end = _turn_end(template, encoded.ids, max(start, behind), stop)
    if end is None and behind > start and not messages[i].get("tool_calls"):
        end = behind  # a template that writes no end token
    elif end is None and is_exact:
        end = stop
    if end is None or end <= start:
        raise template.fault(f"does not show where the answer in message {i + 1} ends")
    return start, end


def _content_span(template: Template, whole: str, i: int) -> Span | None:
    """Where in `whole` the template writes the content of message i, if that can be told."""
    assert template.conversation is not None
    messages = template.conversation.messages
    if not messages[i].get("content"):
        return None
    marked = [*messages[:i], {**messages[i], "content": MARK}, *messages[i + 1 :]]
    text = template.try_render(marked) or ""
    head, _, tail = text.partition(MARK)
    if text.count(MARK) != 1 or not (whole.startswith(head) and whole.endswith(tail)):
        return None
    stop = len(whole) - len(tail)
    return (len(head), stop) if stop >= len(head) else None


def _turn_end(template: Template, ids: Sequence[int], start: int, stop: int) -> int | None:
    """Behind the first token of ids[start:stop] that ends a turn."""
    for t in range(start, stop):
        if ids[t] == template.end_id:
            return t + 1
    for t in reversed(range(start, stop)):
        if ids[t] in template.special_ids:  # another than usual, as for calls of tools
            return t + 1
        if template.tokenizer.decode([ids[t]]).strip():
            return None
    return None


@dataclass(frozen=True)
class _Encoded:
    text: str
    ids: list[int]
    spans: list[Span]  # characters that each token covers
    is_closed: bool  # whether special tokens were added


def _encode(tokenizer: Any, text: str, *, special: bool) -> _Encoded:
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    spans: list[Span] = []
    end = 0
    for start, stop in found["offset_mapping"]:
        # some tokenizers trim white space off their offsets
        spans.append((min(start, end), max(stop, end)))
        end = spans[-1][1]
    return _Encoded(text, list(found["input_ids"]), spans, special)


def _boundary(tokenizer: Any, encoded: _Encoded, place: int, *, is_stop: bool) -> int:
    """How many tokens stand before the character `place`.

    That is how many ids the text before it has, where those are the first ids of the whole. Else a
    token lies across, and it is found by the offsets; such a token is the answer's, whether the
    answer begins (`place` is its start) or ends (`is_stop`) in it."""
    if place == len(encoded.text):
        return len(encoded.ids)
    before = tokenizer(encoded.text[:place], add_special_tokens=encoded.is_closed)["input_ids"]
    before = _without_end(tokenizer, before) if encoded.is_closed else before
    if encoded.ids[: len(before)] == before:
        return len(before)
    if is_stop:
        return sum(start < place for start, _ in encoded.spans)
    return sum(stop <= place for _, stop in encoded.spans)
