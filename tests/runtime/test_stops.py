"""Stop strings: whatever the pieces, the answer is that of `str.find` on the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.errors import InputError
from edgelm.runtime.generate.stops import StopStrings


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    return (text[: min(found)[0]], min(found)[2]) if found else (text, None)


def streamed(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    stop_strings = StopStrings(stops)
    out = []
    for piece in pieces:
        text, matched = stop_strings.push(piece)
        out.append(text)
        if matched is not None:
            assert stop_strings.push("more") == ("", matched)
            break
    text, matched = stop_strings.flush()
    return [*out, text], matched


few_letters = st.text("ab\n", min_size=1, max_size=5)


@given(st.lists(few_letters, max_size=20), st.lists(few_letters, max_size=4))
def test_any_cutting_gives_what_find_gives(pieces: list[str], stops: list[str]) -> None:
    out, matched = streamed(pieces, stops)
    assert ("".join(out), matched) == expected("".join(pieces), stops)


@given(st.text("abc", max_size=30), st.lists(few_letters, max_size=4))
def test_no_more_is_held_back_than_the_longest_stop_string(text: str, stops: list[str]) -> None:
    stop_strings = StopStrings(stops)
    given_out = 0
    for n, char in enumerate(text, start=1):
        piece, matched = stop_strings.push(char)
        given_out += len(piece)
        if matched is not None:
            return
        assert n - given_out < max([len(stop) for stop in stops], default=1)


def test_text_that_no_stop_string_can_begin_with_is_not_held_back() -> None:
    stop_strings = StopStrings(["\nUser:", "###"])
    assert stop_strings.push("Hello, ") == ("Hello, ", None)
    assert stop_strings.push("you #") == ("you ", None)
    assert stop_strings.push("1\nUs") == ("#1", None)
    assert stop_strings.push("er: hi") == ("", "\nUser:")


def test_the_first_to_begin_wins_even_when_it_ends_later() -> None:
    assert streamed(["xa", "b", "c"], ["abc", "b"]) == (["x", "", "", ""], "abc")
    assert streamed(["xa", "b", "d"], ["abc", "b"]) == (["x", "", "a", ""], "b")
    assert streamed(["xab"], ["abc", "b"]) == (["x", "a"], "b")


@pytest.mark.parametrize("stops", ["\n\n", [""], [b"x"], [None], 3])
def test_what_is_no_list_of_texts_is_refused(stops: object) -> None:
    with pytest.raises(InputError, match="stop"):
        StopStrings(stops)  # type: ignore[arg-type]
