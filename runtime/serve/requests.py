"""Reading of request bodies: each value checked once, by hand, with the key's name in the error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.runtime.schema import nearest
from edgelm.runtime.serve import refusals
from edgelm.runtime.serve.http import Body
from edgelm.runtime.serve.waiting import n_tokens_about


def check_keys(body: Body, known: frozenset[str]) -> None:
    """Raise RequestRefused for a key that is not known: what is ignored cannot be relied on."""
    if not body.keys() <= known:
        name = next(key for key in body if key not in known)
        said = f"unknown key {name[:80]!r}{nearest(name[:80], known)}"
        raise refusals.bad_request(said, name[:80])


def flag(body: Body, name: str) -> bool:
    """true or false; false where it is missing or null."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise refusals.bad_request(f"{name}: true or false is needed", name)


def texts(value: Any, param: str, *, pair: bool, max_inputs: int) -> tuple[list[Any], int]:
    """One text or a list of them (pairs are lists of two), as a list; about how many tokens they
    have."""
    single = isinstance(value, str) or (pair and _is_pair(value))
    found = [value] if single else value
    if not isinstance(found, list) or not found:
        what = "a pair of texts" if pair else "a text"
        raise refusals.bad_request(f"{param}: {what}, or a list of them, is needed", param)
    if len(found) > max_inputs:
        raise refusals.bad_request(f"{param}: {len(found)} are more than {max_inputs}", param)
    n_tokens = 0
    for i, text in enumerate(found):
        parts = text if pair and _is_pair(text) else (text,)
        if pair and len(parts) != 2:
            raise refusals.bad_request(f"{param}[{i}]: a pair of texts is needed", param)
        for part in parts:
            n_tokens += n_tokens_about(n_bytes(part, f"{param}[{i}]", param))
    return found, n_tokens


def n_bytes(text: Any, where: str, param: str) -> int:
    """Length in UTF-8. Raises RequestRefused for what is no text."""
    if not isinstance(text, str):
        raise refusals.bad_request(f"{where}: a text is needed", param)
    try:
        return len(text.encode())
    except UnicodeEncodeError as err:
        said = f"{where}: holds a lone surrogate, which is no text"
        raise refusals.bad_request(said, param) from err


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [str, str]


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise refusals.bad_request(f"{where}: an object is needed", where)
    return value
