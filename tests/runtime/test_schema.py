"""Plain data into dataclasses and back, and what is said when it does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.schema import SchemaError, decode, encode, nearest


@dataclass(frozen=True)
class Inner:
    ratio: float
    colour: Literal["red", "green"] = "red"


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 0
    ready: bool = False
    maybe: int | None = None
    names: tuple[str, ...] = ()
    inners: list[Inner] = field(default_factory=list[Inner])
    by_name: dict[str, Inner] = field(default_factory=dict[str, Inner])
    anything: Any = None


INNERS = st.builds(
    Inner,
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(["red", "green"]),
)
OUTERS = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    ready=st.booleans(),
    maybe=st.none() | st.integers(),
    names=st.lists(st.text()).map(tuple),
    inners=st.lists(INNERS, max_size=3),
    by_name=st.dictionaries(st.text(), INNERS, max_size=3),
    anything=st.none() | st.text() | st.lists(st.integers()),
)


@given(OUTERS)
def test_encode_then_decode_gives_the_same(value: Outer) -> None:
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value


WRONG = [
    ({"name": 3}, "name: 3 is not text"),
    ({"name": "a", "count": "3"}, "count: '3' is not a whole number"),
    ({"name": "a", "count": 1.5}, "count: 1.5 is not a whole number"),
    ({"name": "a", "count": True}, "count: True is not a whole number"),
    ({"name": "a", "ready": 1}, "ready: 1 is not true or false"),
    ({"name": "a", "maybe": "x"}, "maybe: 'x' is not a whole number"),
    ({"name": "a", "names": "abc"}, "names: 'abc' is not a list"),
    ({"name": "a", "names": ["b", None]}, "names[1]: None is not text"),
    ({"name": "a", "inners": [{"ratio": 1}, {"ratio": "1"}]}, "inners[1].ratio: '1' is not a nu"),
    ({"name": "a", "inners": [{}]}, "inners[0].ratio: missing"),
    ({"name": "a", "by_name": {"x": 3}}, "by_name.x: 3 is not a mapping"),
    ({"name": "a", "by_name": []}, "by_name: [] is not a mapping"),
    ({"name": "a", "inners": [{"ratio": 1, "colour": "gren"}]}, "did you mean 'green'?"),
    ({"name": "a", "inners": [{"ratio": 1, "colour": 1}]}, "inners[0].colour: 1 is none of red, g"),
    ({}, "name: missing"),
    (None, "Outer: None is not a mapping"),
]


@pytest.mark.parametrize(("value", "says"), WRONG)
def test_a_wrong_value_is_told_with_its_path_and_rule(value: object, says: str) -> None:
    with pytest.raises(SchemaError) as err:
        decode(Outer, value)
    assert says in str(err.value)


def test_a_whole_number_is_a_number() -> None:
    assert decode(Inner, {"ratio": 2}) == Inner(2.0)
    assert isinstance(decode(Inner, {"ratio": 2}).ratio, float)


def test_unknown_keys_are_refused_with_the_nearest_one_or_let_through() -> None:
    data = {"name": "a", "inners": [{"ratio": 1, "color": "red"}]}
    with pytest.raises(SchemaError) as err:
        decode(Outer, data)
    assert str(err.value) == "inners[0].color: unknown key (did you mean 'colour'?)"
    assert decode(Outer, data, strict=False).inners == [Inner(1.0)]


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("trian", ["train", "eval"]) == " (did you mean 'train'?)"
    assert nearest("zzz", ["train", "eval"]) == ""
