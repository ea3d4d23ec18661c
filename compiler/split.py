"""Holding texts out, and keeping texts that were trained on out of the evaluation.

Two texts are the same when they agree after NFKC, case folding and folding of white space; a pair
is the same when both of its texts are.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgelm.runtime.examples import Example

Key = tuple[str, str | None]


@dataclass(frozen=True)
class Overlap:
    """An evaluation text that also stands in the training data, with both places."""

    text: str
    eval_path: str
    eval_row: int
    train_path: str
    train_row: int


def text_key(example: Example) -> Key:
    """What equal texts have in common."""
    return _fold(example.text), None if example.pair is None else _fold(example.pair)


def drop_overlap(
    train: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[Example], list[Overlap]]:
    """The evaluation examples whose text is not in `train`, and the others. Repeats are kept."""
    known: dict[Key, Example] = {}
    for example in train:
        known.setdefault(text_key(example), example)
    kept: list[Example] = []
    dropped: list[Overlap] = []
    for example in held_out:
        seen = known.get(text_key(example))
        if seen is None:
            kept.append(example)
        else:
            dropped.append(
                Overlap(example.text, str(example.path), example.row, str(seen.path), seen.row)
            )
    return kept, dropped


def contradictions(examples: Iterable[Example]) -> list[tuple[Example, Example]]:
    """For each text that stands with different labels, the first two places that disagree."""
    first: dict[Key, Example] = {}
    found: dict[Key, tuple[Example, Example]] = {}
    for example in examples:
        key = text_key(example)
        other = first.setdefault(key, example)
        if key not in found and _labels(other) != _labels(example):
            found[key] = (other, example)
    return list(found.values())


def stratified_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, held out), both in the order of `examples`; equal input and seed, equal split.

    Equal texts stay on one side, so nothing held out is in train; texts with contradictory labels
    stay in train. Of each label with two or more texts, `fraction` is held out, but at least one
    text, and at least one stays. A text with several labels counts for the first of them here, and
    is held out only while all of its labels keep a text in train. A label with one text keeps it
    in train. Without labels all texts are one group.
    """
    groups: dict[Key, frozenset[str]] = {}
    strata: dict[str, list[Key]] = {}
    mixed = {text_key(example) for example, _ in contradictions(examples)}
    for example in examples:
        key = text_key(example)
        if key not in groups:
            groups[key] = _labels(example)
            if key not in mixed:
                strata.setdefault((example.labels or ("",))[0], []).append(key)
    left = Counter(label for key, labels in groups.items() if key not in mixed for label in labels)
    chosen: set[Key] = set()
    generator = random.Random(seed)
    for label in sorted(strata):
        keys = strata[label]
        generator.shuffle(keys)
        wanted = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
        for key in keys:
            if wanted > 0 and all(left[name] > 1 for name in groups[key]):
                chosen.add(key)
                left.subtract(groups[key])
                wanted -= 1
    train = [e for e in examples if text_key(e) not in chosen]
    return train, [e for e in examples if text_key(e) in chosen]


def _labels(example: Example) -> frozenset[str]:
    return frozenset(example.labels or ())


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
