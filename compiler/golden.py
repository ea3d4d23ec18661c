"""Which texts are answered again on the device, and compared with what was packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T", bound="str | tuple[str, str]")

N_GOLDEN = 8
AWKWARD = (3, 5)  # of compiler/nasty.py: Chinese, emoji


def golden_texts(texts: Sequence[T], nasty: Sequence[T]) -> list[T]:
    """Up to N_GOLDEN different ones: from the shortest of `texts` to the longest, and two awkward
    ones of `nasty`, which are NASTY or made of it."""
    unique = sorted(dict.fromkeys(texts), key=lambda text: (len(str(text)), str(text)))
    n = N_GOLDEN - len(AWKWARD)
    if len(unique) > n:
        unique = [unique[round(i * (len(unique) - 1) / (n - 1))] for i in range(n)]
    return [*unique, *(nasty[i] for i in AWKWARD)]
