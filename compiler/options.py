"""Fields of a recipe: one declaration is the default, the help text, the YAML key and the flag."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field
from typing import Any, get_args, get_origin


def option(
    default: Any = MISSING, help: str = "", *, flag: str | None = None, many: bool = False
) -> Any:
    """A recipe field. `flag` overrides the derived command-line flag; `many` repeats it."""
    metadata = {"help": help, "flag": flag, "many": many}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type[Any], help: str) -> Any:
    """A nested part of the recipe."""
    return field(default_factory=cls, metadata={"help": help, "section": True})


@dataclass(frozen=True)
class Leaf:
    """One option of a recipe class tree, found by walking it."""

    path: tuple[str, ...]  # ("train", "epochs"); never empty
    type: Any
    default: Any  # MISSING when required
    help: str
    flag: str
    many: bool

    @property
    def name(self) -> str:
        """`epochs`"""
        return self.path[-1]

    @property
    def is_mapping(self) -> bool:
        """Whether it stands in a recipe file alone: keys of its own are no command-line flag."""
        return get_origin(self.type) is dict

    @property
    def key(self) -> str:
        """`train.epochs`"""
        return ".".join(self.path)


def leaves(cls: type[Any], prefix: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """All options of a recipe class, sections flattened, in order of declaration."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        path = (*prefix, f.name)
        if f.metadata.get("section"):
            yield from leaves(hints[f.name], path)
            continue
        default = f.default
        if f.default_factory is not MISSING:
            default = f.default_factory()
        flag = f.metadata.get("flag") or "--" + "-".join(path).replace("_", "-")
        yield Leaf(path, hints[f.name], default, f.metadata["help"], flag, f.metadata["many"])


def sections(cls: type[Any]) -> Iterator[tuple[str, type[Any], str]]:
    """The nested parts of a recipe class: name, class, help."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if f.metadata.get("section"):
            yield f.name, hints[f.name], f.metadata["help"]


def choices(tp: Any) -> tuple[str, ...] | None:
    """The allowed words when the type is a Literal (or an optional one), else None."""
    for part in (tp, *get_args(tp)):
        if get_origin(part) is typing.Literal:
            return tuple(str(a) for a in get_args(part))
    return None


def scalar(tp: Any) -> Any:
    """The one type behind `T | None` or `list[T]`."""
    args = [a for a in get_args(tp) if a is not type(None)]
    if get_origin(tp) is typing.Literal:
        return type(args[0])
    return scalar(args[0]) if args else tp
