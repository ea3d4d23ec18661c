"""Constrained answers on any engine: which tokens may come next, by the library `llguidance`.

    constraints = Constraints(folder / "tokenizer.json", task.end_ids, session.n_vocab)  # cheap
    constraint = constraints.json_schema({"type": "object", …})  # or grammar, regex, choices
    while not constraint.is_complete:
        constraint.mask(logits)  # what is not allowed becomes -inf
        constraint.accept(sample(logits))

The tokenizer is read by the first constraint and shared by all. V is the model's vocabulary; ids
that the tokenizer does not know (padding of the embedding) are never allowed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.errors import BundleError, InputError, MissingExtra, UsageError
from edgelm.runtime.generate import gbnf
from edgelm.runtime.generate.stops import are_texts

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")

# The library recurses along chains of rules, and a stack overflow would end the process: these
# bound the chains to half of what STACK_BYTES was seen to hold.
MAX_TEXT_BYTES = 2**18
MAX_RULES = 4000
STACK_BYTES = 64 * 2**20
_stack_lock = threading.Lock()

_JSON_OPTIONS = json.dumps(
    {
        # A space, or a new line and its indentation: small models repeat white space without end.
        "whitespace_pattern": r" |\n{1,2}[ \t]{0,20}",
        # Else a model that begins \u00e9 is led into a control character.
        "json_allow_general_unicode_escapes": True,
    }
)
# (256, 8): what a byte of a bit mask does to 8 logits by np.minimum, lowest bit first
_BOUNDS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, np.inf, -np.inf).astype(np.float32)


class Constraint:
    """What may come next in one answer. Its own state: make one for each answer (`fresh`)."""

    def __init__(self, start: LLMatcher, n_vocab: int) -> None:
        self._start = start
        self._matcher = start.deep_copy()
        self._n_vocab = n_vocab
        self._bounds: NDArray[np.float32] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the answer is finished: nothing but an end token may follow."""
        return self._matcher.is_stopped()

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set what is not allowed to -inf, in place. logits: (V,)."""
        assert logits.shape == (self._n_vocab,) and logits.dtype == np.float32
        bits = self._bits()
        if self._bounds is None:
            self._bounds = np.empty((len(bits), 8), np.float32)
        # one pass over a table: as fast for few allowed tokens as for many
        np.take(_BOUNDS, bits, axis=0, out=self._bounds, mode="clip")
        np.minimum(logits, self._bounds.reshape(-1)[: self._n_vocab], out=logits)

    def allowed(self) -> NDArray[np.bool_]:
        """(V,), True where the token may come next."""
        return np.unpackbits(self._bits(), count=self._n_vocab, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """Append a token to the answer. Raises InputError where it is not allowed."""
        if not self._matcher.consume_token(token_id):
            raise InputError(f"token {token_id}: {_reason(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """Tokens without an alternative, which need no engine to be chosen; `accept` each.

        Forced text is cut as the tokenizer cuts it; `mask` allows no other cutting then."""
        ids = self._matcher.compute_ff_tokens()
        return ids[: next((i for i, one in enumerate(ids) if one >= self._n_vocab), len(ids))]

    def fresh(self) -> Constraint:
        """The same constraint at its beginning, for another answer."""
        return Constraint(self._start, self._n_vocab)

    def _bits(self) -> NDArray[np.uint8]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        # the library hides an error behind a mask of the end tokens
        if self._matcher.is_error():
            raise InputError(
                f"the constraint leaves no way on: {_reason(self._matcher.get_error())}",
                hint="it can never be met, or needs characters that the model does not have",
            )
        return bits[: (self._n_vocab + 7) // 8]


class Constraints:
    """Makes the constraints of one model. Safe to use from many threads."""

    def __init__(self, tokenizer: Path, end_ids: Sequence[int], n_vocab: int) -> None:
        self._path = tokenizer  # tokenizer.json
        self._end_ids = list(end_ids)
        self._n_vocab = n_vocab
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def of(
        self,
        *,
        json_schema: dict[str, Any] | str | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Constraint | None:
        """The one that is asked for, None without any. Raises UsageError, InputError,
        MissingExtra."""
        asked = {"json_schema": json_schema, "grammar": grammar, "regex": regex, "choices": choices}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: one constraint for an answer, not several")
        return getattr(self, given[0])(asked[given[0]]) if given else None

    def json_schema(self, schema: dict[str, Any] | str) -> Constraint:
        """JSON that follows a JSON Schema: the schema, or its text. {} is any JSON.

        Properties come in the schema's order. What the library does not know is refused, unless
        the schema says "x-guidance": {"lenient": true}."""
        what = "json_schema"
        if isinstance(schema, str):
            try:
                schema = json.loads(_sized(schema, what))
            except (ValueError, RecursionError) as err:
                raise InputError(
                    f"{what}: {_start_of(schema)} is not JSON: {err}",
                    hint="give the schema itself, as a dict or as JSON text",
                ) from err
        if not isinstance(schema, dict):
            raise InputError(
                f"{what}: {_start_of(schema)} is not an object", hint="{} allows any JSON"
            )
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as err:
            raise InputError(f"{what}: it is not JSON: {err}") from err
        _sized(text, what)
        matcher = _llguidance().LLMatcher
        return self._make(
            what,
            lambda: matcher.grammar_from_json_schema(text, defaults=json.loads(_JSON_OPTIONS)),
            hint='"x-guidance": {"lenient": true} in the schema ignores what is not supported',
        )

    def grammar(self, text: str) -> Constraint:
        """Text that follows a grammar in llguidance's Lark (`start: …`) or GBNF (`root ::= …`)."""
        _sized(text, "grammar")
        return self._make(
            "grammar",
            lambda: _lark(text),
            hint="Lark begins with `start: …`, GBNF with `root ::= …`",
        )

    def regex(self, pattern: str) -> Constraint:
        """Text that a regular expression matches from end to end (syntax of Rust's `regex`)."""
        _sized(pattern, "regex")
        return self._make(
            "regex",
            lambda: _llguidance().LLMatcher.grammar_from_regex(pattern),
            hint="look-around, back references and \\b are not supported",
        )

    def choices(self, choices: Sequence[str]) -> Constraint:
        """Exactly one of the strings."""
        rule = "choices: a list of strings is needed, each another and none empty"
        if not are_texts(choices):
            raise InputError(f"{rule}; got {_start_of(choices)}")
        if not choices or len(set(choices)) < len(choices):
            raise InputError(f"{rule}; got {len(choices)}, {len(set(choices))} of them different")
        pattern = "|".join(map(_escaped, choices))
        _sized(pattern, "choices")
        return self._make("choices", lambda: _llguidance().LLMatcher.grammar_from_regex(pattern))

    def _make(self, what: str, grammar: Callable[[], str], hint: str | None = None) -> Constraint:
        library = _llguidance()
        tokenizer = self._shared()
        limits = library.LLParserLimits(verbose_errors=False)

        def build() -> LLMatcher:
            matcher = library.LLMatcher(tokenizer, grammar(), log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # finds what can never be met
            return matcher

        try:
            matcher = _with_deep_stack(build)
        except (ValueError, RecursionError) as err:
            raise InputError(f"{what}: {_reason(str(err))}", hint=hint) from err
        if matcher.is_error():
            raise InputError(f"{what}: {_reason(matcher.get_error())}", hint=hint)
        made = Constraint(matcher, self._n_vocab)
        allowed = made.allowed()
        allowed[self._end_ids] = False
        if not allowed.any():
            raise InputError(f"{what}: it allows the empty text only")
        return made

    def _shared(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read()
            return self._tokenizer

    def _read(self) -> LLTokenizer:
        if not self._end_ids:
            raise InputError("the model has no token that ends an answer, so none can be bounded")
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            size = _fill_holes(data)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise BundleError(f"{self._path}: not a tokenizer: {err}") from err
        data["truncation"] = data["padding"] = None  # they would change forced tokens
        try:
            return _llguidance().LLTokenizer(
                json.dumps(data, ensure_ascii=False),
                n_vocab=max(self._n_vocab, size),
                eos_token=self._end_ids,
            )
        except ValueError as err:
            raise InputError(
                f"answers of this model cannot be constrained: its tokenizer: {_reason(str(err))}",
                hint="byte-level BPE, and BPE that falls back on bytes, can be constrained",
            ) from err


def _fill_holes(data: dict[str, Any]) -> int:
    """Give every id below the highest a name, and return how many ids there are.

    The library takes ids for the numbers from 0 to the count of tokens."""
    vocab: Any = data["model"]["vocab"]
    if not isinstance(vocab, dict):
        return len(vocab)
    taken = {*vocab.values(), *(token["id"] for token in data["added_tokens"])}
    size = max(taken) + 1
    for hole in set(range(size)) - taken:
        name = f"<|unused id {hole}|>"
        vocab[name] = hole
        data["added_tokens"].append(
            {"id": hole, "content": name, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        )
    return size


def _lark(text: str) -> str:
    """A grammar in either form. Raises ValueError."""
    lark = gbnf.to_lark(text) if gbnf.is_gbnf(text) else text
    n_lines = lark.count("\n")
    if n_lines > MAX_RULES:
        raise ValueError(f"{n_lines} lines of rules; at most {MAX_RULES} can be")
    return lark


def _with_deep_stack(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool, _stack_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            future = pool.submit(work)  # starts the thread
        finally:
            threading.stack_size(before)
    return future.result()


def _escaped(text: str) -> str:
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _sized(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{what}: {_start_of(text)} is not text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as err:
        raise InputError(f"{what}: it holds a lone surrogate, which is no text") from err
    if size > MAX_TEXT_BYTES:
        raise InputError(f"{what}: {size} bytes; at most {MAX_TEXT_BYTES} can be")
    return text


def _reason(message: str) -> str:
    """The library's message on one line, without its excerpts and its state."""
    lines = message.partition("\n<")[0].splitlines()
    told = " ".join(line.strip() for line in lines if not re.match(r"\s*(\d+ \||\^|$)", line))
    return "no text can meet it" if told.startswith("NoExtension") else told[:300]


def _start_of(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as err:
        raise MissingExtra("llguidance", "structured") from err
    return llguidance
