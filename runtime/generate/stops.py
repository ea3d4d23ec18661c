"""Stop strings, exact across the pieces in which a text arrives."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.runtime.errors import InputError


class StopStrings:
    """Ends a text before the first stop string in it; where two begin together, the shorter.

    Text that may be the beginning of a stop string is held back, so nothing of a stop string and
    nothing behind it is ever given out. How the text was cut into pieces makes no difference."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not are_texts(stops):
            raise InputError(
                f"stop: {stops!r:.80} is not a list of strings, none of them empty",
                hint='for example stop=["\\n\\n"]',
            )
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    def push(self, piece: str) -> tuple[str, str | None]:
        """(text that is sure, the stop string that ended it or None); "" after the end."""
        if not self._stops:
            return piece, None
        if self._matched is not None:
            return "", self._matched
        text = self._held + piece
        begin, match = self._first(text)
        waiting = self._first_beginning(text, begin)
        if match is not None and waiting == begin:
            self._held, self._matched = "", match
            return text[:begin], match
        self._held = text[waiting:]
        return text[:waiting], None

    def flush(self) -> tuple[str, str | None]:
        """What is left when no more text comes, as `push`."""
        begin, match = self._first(self._held)
        text, self._held = self._held[:begin], ""
        self._matched = self._matched or match
        return text, self._matched

    def _first(self, text: str) -> tuple[int, str | None]:
        """Where the first stop string begins, and which; the end of the text and None."""
        found = [(text.find(stop), len(stop), stop) for stop in self._stops]
        begin, _, match = min((f for f in found if f[0] >= 0), default=(len(text), 0, None))
        return begin, match

    def _first_beginning(self, text: str, limit: int) -> int:
        """Where the text, up to its end, is the beginning of a stop string; at most `limit`."""
        for stop in self._stops:
            begin = text.find(stop[0], max(0, len(text) - len(stop) + 1), limit)
            while begin >= 0:
                if stop.startswith(text[begin:]):
                    limit = begin
                    break
                begin = text.find(stop[0], begin + 1, limit)
        return limit


def are_texts(given: Sequence[object]) -> bool:
    """Whether it is a list of strings, none of them empty."""
    is_list = isinstance(given, (list, tuple))
    return is_list and all(isinstance(one, str) and one for one in given)
