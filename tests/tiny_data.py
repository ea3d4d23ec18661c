"""Small labelled texts for the tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TEXTS = {
    "card_lost": ("i lost my card", "my card is lost", "where is the card", "card lost today"),
    "refund": ("please refund my money", "refund the order", "money refund now", "refund me"),
    "other": ("hello how do you do", "thanks for the help", "good day hello", "bye and thanks"),
}


def labelled_rows(n: int = 10, start: int = 0) -> list[tuple[str, str]]:
    """n different texts a label; another `start` gives others."""
    return [
        (f"{texts[i % len(texts)]} {'now ' * (i // len(texts) % 3)}{i}", label)
        for label, texts in TEXTS.items()
        for i in range(start, start + n)
    ]


def write_csv(path: Path, rows: Iterable[tuple[str, ...]], head: str = "text,label") -> Path:
    """A csv of cells that need no quotes."""
    lines = [head, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
