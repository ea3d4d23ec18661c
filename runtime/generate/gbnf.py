"""llama.cpp's GBNF grammars in the Lark form that llguidance reads.

llguidance's terminals take the longest text they can, where llama.cpp tries every length. So a
grammar without recursion becomes one terminal, which is a regular expression: exact, and fast. In
others all characters are terminals of their own, but for long loops between two plain parts, as
the text of a string between its quotes: those would be slow. Where such a terminal begins like
something else that may stand there, the shorter may be lost; what the grammar does not describe is
never allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<define>::=)
    |(?P<name>[A-Za-z0-9_-]+)
    |(?P<literal>"(?:[^"\\]|\\.)*")
    |(?P<chars>\[(?:[^\]\\]|\\.)*\])
    |(?P<special><[^>\s]+>)
    |(?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<dot>\.)
    |(?P<open>\()|(?P<close>\))|(?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|.", re.DOTALL)
_MAX_DEPTH = 100  # of brackets
_LONG = 9  # times that a loop goes round to be slow character by character
_NAMED = {"n": 10, "r": 13, "t": 9} | {char: ord(char) for char in '"\\[]'}


def is_gbnf(text: str) -> bool:
    """Whether it looks like GBNF: a rule is defined by `::=`."""
    return re.search(r"(?m)^\s*[\w-]+\s*::=", text) is not None


def to_lark(text: str) -> str:
    """The same grammar for llguidance. Raises ValueError with the line."""
    rules = _rules(text)
    if "root" not in rules:
        raise ValueError("there is no rule 'root'")
    for name, rule in rules.items():
        missing = [used for used in rule.names() if used not in rules]
        if missing:
            raise ValueError(f"line {rule.line}: rule {name!r} uses {min(missing)!r}, not a rule")
    return "\n".join([*_Writer(rules).lines(), ""])


@dataclass
class _Rule:
    line: int
    body: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (kind, Lark)

    def names(self) -> set[str]:
        return {text for kind, text in self.body if kind == "name"}


def _rules(text: str) -> dict[str, _Rule]:
    rules: dict[str, _Rule] = {}
    rule, depth = _Rule(1), 0
    for kind, part, line in (*_tokens(text), ("end", "", 0)):
        if kind in ("define", "end") and depth:
            raise ValueError(f"line {rule.line}: a bracket of the rule is not closed")
        depth += (kind == "open") - (kind == "close")
        if not 0 <= depth <= _MAX_DEPTH:
            told = "closed that is not open" if depth < 0 else f"deeper than {_MAX_DEPTH}"
            raise ValueError(f"line {line}: a bracket is {told}")
        if kind == "define":
            name_kind, name = rule.body.pop() if rule.body else ("", "")
            if name_kind != "name" or (not rules and rule.body):
                raise ValueError(f"line {line}: a rule begins with its name and ::=")
            if name in rules:
                raise ValueError(f"line {line}: the rule {name!r} is there twice")
            rule = rules[name] = _Rule(line)
        elif kind == "repeat" and rule.body[-1:] in ([], [("or", "|")], [("open", "(")]):
            raise ValueError(f"line {line}: there is nothing before {part}")
        elif kind != "end":
            rule.body.append((kind, part))
    return rules


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """(kind, the part as Lark has it, line); a literal is its characters between brackets."""
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"line {line}: {text[at : at + 20]!r} is not GBNF")
        kind, part = found.lastgroup or "", found[0]
        if kind == "literal":
            characters = [("char", f"/{_code(one, line)}/") for one in _characters(part)]
            parts = [("open", "("), *(characters or [("chars", '""')]), ("close", ")")]
            yield from ((kind, part, line) for kind, part in parts)
        elif kind == "chars":
            yield kind, _class(part, line), line
        elif kind == "dot":
            yield kind, "/(?s:.)/", line
        elif kind != "space":
            yield kind, part, line
        at, line = found.end(), line + found[0].count("\n")


def _class(part: str, line: int) -> str:
    characters = _characters(part)
    inverse = "^" if characters[:1] == ["^"] else ""
    items, at = "", len(inverse)
    while at < len(characters):
        items += _code(characters[at], line)
        if characters[at + 1 : at + 2] == ["-"] and at + 2 < len(characters):
            items += "-" + _code(characters[at + 2], line)
            at += 2
        at += 1
    if not items:
        raise ValueError(f"line {line}: {part} holds no character")
    return f"/[{inverse}{items}]/"


def _characters(part: str) -> list[str]:
    """What stands between the quotes or brackets, escapes whole."""
    return _ESCAPE.findall(part[1:-1])


def _code(one: str, line: int) -> str:
    """A character or an escape, as a regular expression has it."""
    code = ord(one) if len(one) == 1 else _NAMED.get(one[1:])
    if code is None and len(one) > 2:
        code = int(one[2:], 16)
    if code is None:
        raise ValueError(f"line {line}: {one!r} is not an escape of GBNF")
    return f"\\x{{{code:x}}}"


@dataclass(frozen=True)
class _Item:
    """A part of a sequence, in the two forms that it can be written in."""

    rule: Callable[[], str]  # as part of a rule
    terminal: str | None  # as part of a terminal; None where it holds recursion or special tokens
    is_closed: bool  # whether a terminal may end with it, not with a loop
    has_long_loop: bool = False
    is_text: bool = False  # characters, without a choice

    def repeated(self, times: str) -> _Item:
        """times: * + ? or {m,n}."""
        counts = [int(digits) for digits in re.findall(r"\d+", times)]
        is_fixed = min(counts, default=0) > 0 and counts[0] == counts[-1] and ",}" not in times
        is_long = max(counts, default=0) > _LONG or times[-2:] in ("*", "+", ",}")
        return _Item(
            lambda: f"({self.rule()}){times}",
            None if self.terminal is None else f"({self.terminal}){times}",
            self.is_closed and is_fixed,
            self.has_long_loop or is_long,
        )


class _Alternatives(list[list[_Item]]):
    """Sequences of which one is taken: a rule's, or those between brackets."""

    @property
    def terminal(self) -> str | None:
        texts = [[item.terminal for item in items] for items in self]
        if any(text is None for one in texts for text in one):
            return None
        return " | ".join(" ".join(text for text in one if text) for one in texts)

    @property
    def is_closed(self) -> bool:
        return all(items and items[-1].is_closed for items in self)

    @property
    def has_long_loop(self) -> bool:
        return any(item.has_long_loop for items in self for item in items)


class _Writer:
    """Lark's lines. GBNF's names may collide in Lark, which tells terminals by their capitals, so
    rules are numbered: R1 is the terminal, r1 the rule."""

    def __init__(self, rules: dict[str, _Rule]) -> None:
        self._rules = rules
        self._number = {name: i for i, name in enumerate(rules)}
        self._terminals: dict[str, _Alternatives] = {}
        self._lines: list[str] = []
        self._n_loops = 0

    def lines(self) -> list[str]:
        """The whole grammar."""
        for name in _terminals(self._rules):
            self._terminals[name] = self._alternatives(name)
            self._lines.append(f"R{self._number[name]}: {self._terminals[name].terminal}")
        if "root" in self._terminals:
            return [f"start: R{self._number['root']}", *self._lines]
        for name, number in self._number.items():
            self._lines.append(f"r{number}: {self._rule(self._alternatives(name))}")
        return [f"start: r{self._number['root']}", *self._lines]

    def _alternatives(self, name: str) -> _Alternatives:
        levels = [_Alternatives([[]])]  # one for each open bracket
        for kind, part in self._rules[name].body:
            items = levels[-1][-1]
            if kind == "open":
                levels.append(_Alternatives([[]]))
            elif kind == "or":
                levels[-1].append([])
            elif kind == "close":
                group = levels.pop()
                levels[-1][-1].append(self._group(group))
            elif kind == "repeat":
                items.append(items.pop().repeated(part))
            elif kind == "name":
                items.append(self._name(part))
            else:
                terminal = None if kind == "special" else part
                items.append(
                    _Item(part.__str__, terminal, terminal is not None, is_text=kind == "char")
                )
        return levels[0]

    def _group(self, group: _Alternatives) -> _Item:
        terminal = None if group.terminal is None else f"({group.terminal})"
        return _Item(
            lambda: f"({self._rule(group)})",
            terminal,
            group.is_closed,
            group.has_long_loop,
            len(group) == 1 and all(item.is_text for item in group[0]),
        )

    def _name(self, name: str) -> _Item:
        number, used = self._number[name], self._terminals.get(name)
        if used is None:
            return _Item(f"r{number}".__str__, None, False)
        return _Item(f"r{number}".__str__, f"R{number}", used.is_closed, used.has_long_loop)

    def _rule(self, alternatives: _Alternatives) -> str:
        return " | ".join(" ".join(self._parts(items)) for items in alternatives)

    def _parts(self, items: list[_Item]) -> Iterator[str]:
        """The sequence, with a terminal for each long loop between plain parts."""
        at = 0
        while at < len(items):
            end = self._end_of_loop(items, at)
            if end is None:
                yield items[at].rule()
            else:
                yield f"T{self._n_loops}"
                terminal = _Alternatives([items[at : end + 1]]).terminal
                self._lines.append(f"T{self._n_loops}: {terminal}")
                self._n_loops += 1
            at = (at if end is None else end) + 1

    @staticmethod
    def _end_of_loop(items: list[_Item], at: int) -> int | None:
        """The plain part behind a loop that has plain text at `at` before it."""
        if not items[at].is_text or not any(item.has_long_loop for item in items[at + 1 : at + 2]):
            return None
        for end in range(at + 1, len(items)):
            if items[end].terminal is None:
                return None
            if items[end].is_closed and end > at + 1:
                return end
        return None


def _terminals(rules: dict[str, _Rule]) -> list[str]:
    """Rules without recursion and special tokens, each behind those that it uses."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    n_waiting = {name: len(rule.names()) for name, rule in rules.items()}
    for name, rule in rules.items():
        for used in rule.names():
            users[used].append(name)
    ready = [name for name, n in n_waiting.items() if n == 0]
    found: list[str] = []
    while ready:
        name = ready.pop()
        if any(kind == "special" for kind, _ in rules[name].body):
            continue
        found.append(name)
        for user in users[name]:
            n_waiting[user] -= 1
            if n_waiting[user] == 0:
                ready.append(user)
    return found
