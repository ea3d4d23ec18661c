"""The labels of a data set: found in the training data, or those of a model that is fine-tuned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgelm.runtime.errors import DataError
from edgelm.runtime.examples import Example
from edgelm.runtime.schema import nearest

SHOWN = 5  # labels listed in a message

_NUMBER = re.compile(r"-?[0-9]+")
_INDEX = re.compile(r"(?:LABEL_)?([0-9]{1,6})", re.IGNORECASE)


def find_labels(examples: Iterable[Example], path: object) -> tuple[str, ...]:
    """All labels, sorted by name, whole numbers by value. Raises DataError for fewer than two."""
    names = {label for example in examples for label in example.labels or ()}
    if len(names) < 2:
        one = f"all texts have the label {min(names)!r}" if names else "no text has a label"
        raise DataError(f"{one}, but a classifier needs at least two labels", path=path)
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_labels(examples: Iterable[Example], labels: Sequence[str]) -> None:
    """Raises DataError for labels of evaluation data that the training data does not know."""
    known = set(labels)
    unknown: dict[str, Example] = {}
    for example in examples:
        for label in example.labels or ():
            if label not in known:
                unknown.setdefault(label, example)
    if unknown:
        raise _unknown(
            unknown, labels, "the training data knows no label",
            hint="a model cannot learn a label that it was never shown: add texts, or leave it out",
        )  # fmt: skip


def to_model_labels(
    examples: Sequence[Example], labels: tuple[str, ...]
) -> tuple[list[Example], list[str]]:
    """Examples with their labels turned into the model's own, and notes of what was turned.

    A label is the model's own name, in whatever case where that is unambiguous, or its index, as a
    number or as LABEL_0, where none of the model's names is a number. Raises DataError, listing
    unknown labels with file and row.
    """
    by_index = not any(_NUMBER.fullmatch(label) for label in labels)
    mapping: dict[str, str] = {}
    unknown: dict[str, Example] = {}
    for example in examples:
        for label in example.labels or ():
            if label not in mapping and label not in unknown:
                found = _model_label(label, labels, by_index)
                if found is None:
                    unknown[label] = example
                else:
                    mapping[label] = found
    if unknown:
        raise _unknown(
            unknown, labels, "the model has no label",
            hint="train the model on these labels with --train FILE, or rename them in the data",
        )  # fmt: skip
    turned = [f"{a} is {b}" for a, b in sorted(mapping.items()) if a != b]
    more = f" and {len(turned) - SHOWN} more" if len(turned) > SHOWN else ""
    notes = [f"labels taken as the model's: {', '.join(turned[:SHOWN])}{more}"] if turned else []
    return [_mapped(example, mapping) for example in examples], notes


def _mapped(example: Example, mapping: dict[str, str]) -> Example:
    if example.labels is None:
        return example
    return replace(example, labels=tuple(dict.fromkeys(mapping[name] for name in example.labels)))


def _model_label(label: str, labels: tuple[str, ...], by_index: bool) -> str | None:
    if label in labels:
        return label
    folded = [name for name in labels if name.casefold() == label.casefold()]
    if len(folded) == 1:
        return folded[0]
    index = _INDEX.fullmatch(label)
    if by_index and index and int(index[1]) < len(labels):
        return labels[int(index[1])]
    return None


def _unknown(
    unknown: dict[str, Example], labels: Sequence[str], says: str, *, hint: str
) -> DataError:
    (first, where), *others = unknown.items()
    message = f"{says} {first!r}{nearest(first, labels)}"
    if others:
        listed = [f"{name!r} in {e.path}, row {e.row}{nearest(name, labels)}" for name, e in others]
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        message += f"; neither {', '.join(listed[:SHOWN])}{more}"
    shown = ", ".join(labels[:12]) + (", …" if len(labels) > 12 else "")
    return DataError(
        message, path=where.path, row=where.row, hint=f"{hint}; the labels are {shown}"
    )
