"""Typed reading of plain data (from JSON or YAML) into dataclasses, and back.

One decoder serves the recipe (strict: an unknown key is an error that names the nearest valid
key) and the manifest (lenient: a newer minor version may add keys). Supported field types: str,
int, float, bool, None, Literal, list[T], tuple[T, ...], dict[str, T], dataclasses, unions of those.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class SchemaError(ValueError):
    """A value does not fit its type; the text names where, what stands there and the rule."""


def decode(cls: type[T], value: object, where: str = "", *, strict: bool = True) -> T:
    """Build a `cls` (a dataclass) from a mapping. Raises SchemaError."""
    return _decode(cls, value, where, strict)


def encode(value: object) -> Any:
    """Turn a dataclass tree into dicts, lists and scalars, leaving out nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {str(k): encode(v) for k, v in value.items()}
    return value


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """' (did you mean X?)' where a near name is known, else ''."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _decode(tp: Any, value: object, where: str, strict: bool) -> Any:
    origin = get_origin(tp)
    if tp is Any or tp is object:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(tp), value, where, strict)
    if origin is Literal:
        choices = get_args(tp)
        if value in choices and type(value) in {type(c) for c in choices}:
            return value
        near = nearest(str(value), [str(c) for c in choices])
        raise SchemaError(f"{where}: {value!r} is none of {', '.join(map(str, choices))}{near}")
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise SchemaError(f"{where}: {value!r} is not a list")
        item = get_args(tp)[0]
        items = [_decode(item, v, f"{where}[{i}]", strict) for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: {value!r} is not a mapping")
        item = get_args(tp)[1]
        return {str(k): _decode(item, v, f"{where}.{k}", strict) for k, v in value.items()}
    if dataclasses.is_dataclass(tp):
        return _decode_dataclass(typing.cast("type[Any]", tp), value, where, strict)
    return _decode_scalar(tp, value, where)


def _decode_union(options: tuple[Any, ...], value: object, where: str, strict: bool) -> Any:
    if value is None and type(None) in options:
        return None
    errors: list[SchemaError] = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _decode(option, value, where, strict)
        except SchemaError as err:
            errors.append(err)
    raise errors[0]


def _decode_dataclass(cls: type[Any], value: object, where: str, strict: bool) -> Any:
    if not isinstance(value, dict):
        raise SchemaError(f"{where or cls.__name__}: {value!r} is not a mapping")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    unknown = [str(k) for k in value if k not in fields]
    if unknown and strict:
        raise SchemaError(f"{prefix}{unknown[0]}: unknown key{nearest(unknown[0], fields)}")
    kwargs: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            kwargs[name] = _decode(hints[name], value[name], prefix + name, strict)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{prefix}{name}: missing")
    return cls(**kwargs)


def _decode_scalar(tp: Any, value: object, where: str) -> Any:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if tp is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, tp) and not (isinstance(value, bool) and tp is not bool):
        return value
    raise SchemaError(f"{where}: {value!r} is not {names.get(tp, tp)}")
