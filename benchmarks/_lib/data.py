"""Where banking77 lies, and subsets of it for quick runs."""

from __future__ import annotations

import csv
import os
import random
from dataclasses import dataclass
from pathlib import Path

from _lib.machine import ROOT

SOURCE = "github.com/PolyAI-LDN/task-specific-datasets, folder banking_data (CC BY 4.0)"
Row = tuple[str, str]  # text, label


@dataclass(frozen=True)
class Data:
    """Two csv files with the columns text, category."""

    train: Path
    test: Path


def find_data(given: Path | None) -> Data:
    """`--data`, else EDGELM_DATA, else ../shared/data/banking77. Ends the run if absent."""
    base = os.environ.get("EDGELM_DATA")
    folder = given or (
        Path(base) / "banking77" if base else ROOT.parent / "shared" / "data" / "banking77"
    )
    if given is None and base and (Path(base) / "train.csv").is_file():
        folder = Path(base)
    data = Data(folder / "train.csv", folder / "test.csv")
    for path in (data.train, data.test):
        if not path.is_file():
            raise SystemExit(
                f"error: no {path.name} in {folder}\n"
                f"hint: take train.csv and test.csv from {SOURCE},\n"
                "      and name their folder with --data, or its parent with EDGELM_DATA"
            )
    return data


def read_rows(path: Path) -> list[Row]:
    """Text and label of each row."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def write_subset(source: Path, target: Path, n: int, seed: int = 0) -> Path:
    """A random sample of `n` rows, in which every label of the sample stands twice or more."""
    rows = read_rows(source)
    random.Random(seed).shuffle(rows)
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    labels = sorted(by_label)[: max(2, min(len(by_label), n // 2))]
    chosen = [row for label in labels for row in by_label[label][:2]]
    taken = set(chosen)
    chosen += [r for r in rows if r[1] in labels and r not in taken][: max(0, n - len(chosen))]
    random.Random(seed + 1).shuffle(chosen)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "category"])
        writer.writerows(chosen)
    return target
