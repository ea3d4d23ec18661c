"""Which column holds the text, the second text, the label and the score.

What the caller names is taken; the rest is found by the usual names of public data sets, whatever
their case. Two candidates of equal rank are never chosen between: the caller is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.runtime.errors import DataError
from edgelm.runtime.schema import nearest

Ranks = tuple[tuple[str, ...], ...]  # the first rank with a match decides

TEXT: Ranks = (
    ("text",),
    ("sentence", "utterance", "query", "question", "content", "review", "comment", "message",
     "tweet", "document", "body", "prompt", "instruction", "text_a", "text1", "sentence1",
     "premise", "question1"),
    ("title", "headline"),
)  # fmt: skip
LABEL: Ranks = (
    ("label", "labels"),
    ("category", "intent", "intents", "class", "target", "sentiment", "tag", "tags", "topic"),
)
SCORE: Ranks = (("score", "similarity", "similarity_score"),)
COUPLES = (
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question_1", "question_2"),
    ("query1", "query2"),
)
FLAGS = {"text": "--text-column", "pair": "--pair-column", "label": "--label-column"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use."""

    text: str
    pair: str | None = None
    label: str | None = None
    score: str | None = None


def find_columns(
    names: Sequence[str],
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    score: str | None = None,
    need_label: bool = True,
    path: object = None,
) -> Columns:
    """Find the columns among `names`; a column named by the caller must be there.

    A second text is looked for only where the text is not named. `label` is looked for where
    `need_label`; without it a score is. Raises DataError: unknown name, none or two candidates.
    """
    finder = _Finder(names, path)
    for what, name in (("text", text), ("pair", pair), ("label", label), ("score", score)):
        finder.check(what, name)
    if text is None and pair is None:
        text, pair = finder.couple()
    if pair is not None and text is None:
        text = finder.partner(pair) or finder.find("text", TEXT, without=(pair, label, score))
    if text is None:
        text = finder.find("text", TEXT, without=(label, score))
    if text is None:
        raise DataError(
            f"no column looks like the text among {finder.listed}", path=path,
            hint=f"name it with {FLAGS['text']}; the first line of a table holds the column names",
        )  # fmt: skip
    if label is None and need_label:
        label = finder.find("label", LABEL, without=(text, pair))
        if label is None:
            raise DataError(
                f"no column looks like the label among {finder.listed}", path=path,
                hint=f"name it with {FLAGS['label']}",
            )  # fmt: skip
    if score is None and not need_label and pair is not None:
        score = finder.find("score", SCORE, without=(text, pair, label))
    used = [name for name in (text, pair, label, score) if name is not None]
    if len(set(used)) != len(used):
        twice = next(name for name in used if used.count(name) > 1)
        raise DataError(f"the column {twice!r} cannot be two things at once", path=path)
    return Columns(text, pair, label, score)


@dataclass(frozen=True)
class _Finder:
    names: Sequence[str]
    path: object

    @property
    def listed(self) -> str:
        shown = ", ".join(repr(name[:60]) for name in self.names[:12])
        return shown + (", …" if len(self.names) > 12 else "")

    def check(self, what: str, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise DataError(
                f"there is no {what} column {name!r}{nearest(name, self.names)}", path=self.path,
                hint=f"the columns are {self.listed}",
            )  # fmt: skip

    def find(self, what: str, ranks: Ranks, *, without: tuple[str | None, ...]) -> str | None:
        for rank in ranks:
            found = [n for n in self.names if _plain(n) in rank and n not in without]
            if len(found) > 1:
                raise self.ambiguous(what, found)
            if found:
                return found[0]
        return None

    def couple(self) -> tuple[str | None, str | None]:
        by_plain = {_plain(name): name for name in self.names}
        found = [(by_plain[a], by_plain[b]) for a, b in COUPLES if a in by_plain and b in by_plain]
        if len(found) > 1:
            raise self.ambiguous("text", [a for a, _ in found])
        return found[0] if found else (None, None)

    def partner(self, pair: str) -> str | None:
        by_plain = {_plain(name): name for name in self.names}
        return next((by_plain[a] for a, b in COUPLES if b == _plain(pair) and a in by_plain), None)

    def ambiguous(self, what: str, found: Sequence[str]) -> DataError:
        listed = ", ".join(repr(name) for name in found)
        flag = FLAGS.get(what)
        return DataError(
            f"more than one column looks like the {what}: {listed}", path=self.path,
            hint=f"name the one that is meant with {flag}" if flag else "rename one of them",
        )  # fmt: skip


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
