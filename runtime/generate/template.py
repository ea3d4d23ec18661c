"""Messages to the prompt's text, by the model's own chat template in a sandbox.

The environment is the one that templates are written for (that of Hugging Face's
`apply_chat_template`): trimmed blocks, `raise_exception`, `strftime_now`, loop controls, and
`{% generation %}` marks, which mean nothing here. A template is part of the model, so it is held to
limits: no attributes that reach Python's inside, no changes to what it is given, and bounded size,
output and loops.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgelm.runtime.errors import BundleError, InputError

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_RANGE = 100_000  # steps of all `range` loops of one rendering together
MAX_GROWTH, MAX_ADDED_CHARS = 4, 65_536  # the output is at most 4 x the messages, and this much
MAX_MADE = 1_000_000  # characters or items that a product, a width or a power may make
_WIDE = re.compile(r"\*|\d{5,}")  # of a format's width or precision
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. `render` may be called from many threads."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """special: texts of the tokens that a template may name, such as `bos_token`.

        Raises BundleError."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise BundleError(f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        self._special = dict(special)
        environment = _Environment()
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as err:
            raise BundleError(f"the chat template cannot be read: {err}") from err

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt's text. Raises InputError when the template refuses the messages."""
        limit = MAX_GROWTH * len(json.dumps([*messages, *(tools or ())], default=str))
        limit += MAX_ADDED_CHARS
        values: dict[str, Any] = {
            **self._special,
            "messages": [dict(m) for m in messages],
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "range": _BoundedRange(),
        }
        parts: list[str] = []
        n_chars = 0
        try:
            for part in self._template.generate(values):
                n_chars += len(part)
                if n_chars > limit:
                    raise InputError(f"the chat template wrote over {limit} characters")
                parts.append(part)
        except _Refused as err:
            raise InputError(f"the chat template refuses these messages: {err}") from err
        except SecurityError as err:
            raise BundleError(f"the chat template does what none may do: {err}") from err
        # what a template can run into with messages it was not written for
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as err:
            raise InputError(f"the chat template fails on these messages: {err}") from err
        except (AttributeError, RecursionError, MemoryError) as err:
            raise InputError(f"the chat template fails on these messages: {err!r}") from err
        return "".join(parts)


class _Refused(Exception):
    """The template called raise_exception."""


class _BoundedRange:
    """`range` with a bound on the steps of all its loops."""

    def __init__(self) -> None:
        self._left = MAX_RANGE

    def __call__(self, *bounds: int) -> range:
        made = range(*bounds)
        self._left -= len(made) + 1
        if self._left < 0:
            raise SecurityError(f"its loops take more than {MAX_RANGE} steps")
        return made


class _GenerationMark(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model learns to say; the body prints."""

    tags = {"generation"}  # noqa: RUF012 as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Products, powers, widths and paddings make no more than MAX_MADE, nor do `replace` and `join`
    as methods. Texts that grow by `+`, `~` and filters are not counted while they grow."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            value if isinstance(value, int) else len(value)
            for value in (left, right)
            if isinstance(value, (int, str, list, tuple, bytes))
        ]
        if operator == "**" and (len(sizes) < 2 or max(map(abs, sizes)) > 1024):
            raise SecurityError("a power of large numbers")
        if operator == "*" and len(sizes) == 2 and abs(sizes[0] * sizes[1]) > MAX_MADE:
            raise SecurityError(f"a product of more than {MAX_MADE}")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("a format of a large width")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        found = super().wrap_str_format(value)
        if found is not None and _WIDE.search(value.__self__):
            raise SecurityError("a format of a large width")
        return found

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        of = getattr(__obj, "__self__", None)
        if isinstance(of, str):
            name = getattr(__obj, "__name__", "")
            padding = [*args, *kwargs.values()] if name in _PADDING else []
            if any(isinstance(n, int) and n > MAX_MADE for n in padding):
                raise SecurityError("a text of a large width")
            if name in ("replace", "join") and _made(of, args) > MAX_MADE:
                raise SecurityError(f"a text of more than {MAX_MADE} characters")
        return super().call(__context, __obj, *args, **kwargs)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMark, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        for name in ("center", "format", "indent", "wordwrap"):
            self.filters[name] = _bounded(self.filters[name])
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now


def _made(text: str, args: Sequence[Any]) -> int:
    """The most characters that `replace`, or `join`, can make."""
    if len(args) >= 2:
        return (text.count(str(args[0])) or 0) * len(str(args[1])) + len(text)
    return sum(len(str(part)) + len(text) for part in args[0]) if args else 0


def _bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numbers, and widths within texts, are not large."""

    @functools.wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        numbers = [n for n in (*args, *kwargs.values()) if isinstance(n, int)]
        is_format = filter_.__name__ == "do_format" and _WIDE.search(str(args[0]))
        if is_format or any(n > MAX_MADE for n in numbers):
            raise SecurityError("a text of a large width")
        return filter_(*args, **kwargs)

    return bounded


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
