"""Which golden labels may flip, and what happens with targets that are not known here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelm.runtime.manifest import Task
from edgelm.runtime.verify import (
    _labels_hold,  # pyright: ignore[reportPrivateUsage]
    golden_limits,
)


def test_a_label_flips_only_where_the_packed_margin_is_small() -> None:
    expected = np.array([[1.0, 1.1], [1.0, 1.6], [2.0, 1.0]], np.float32)
    found = np.array([[1.2, 1.1], [1.4, 1.3], [2.0, 1.0]], np.float32)
    task = Task("text-classification", ("a", "b"))
    assert _labels_hold(task, found, expected, 0.25).tolist() == [True, False, True]


def test_label_sets_flip_only_near_the_threshold() -> None:
    task = Task("text-classification", ("a", "b"), problem="multi_label", threshold=0.75)
    edge = float(np.log(3))
    expected = np.array([[edge + 0.1, 5], [edge + 0.5, 5], [edge - 1, -5]], np.float32)
    found = expected - np.array([[0.2, 0], [0.6, 0], [0, 0]], np.float32)
    assert _labels_hold(task, found, expected, 0.25).tolist() == [True, False, True]


def test_a_target_of_a_later_version_is_skipped(run_cli, classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))
    manifest = json.loads((copy / "edgelm.json").read_text(encoding="utf-8"))
    for variant in manifest["variants"][1:]:
        variant["target"] = "later"
    (copy / "edgelm.json").write_text(json.dumps(manifest), encoding="utf-8")
    run = run_cli("verify", copy, "--threads", 1)
    assert run.code == 0
    assert "onnx-int8: skipped: not known to this version" in run.out
    data = tmp_path / "data.csv"
    data.write_text("text,label\nhello,other\n")
    run = run_cli("eval", copy, "--data", data, "--threads", 1, "--json")
    assert (run.code, [r["variant"] for r in run.rows[0]]) == (0, ["onnx-fp32"])
    run = run_cli("bench", copy, "--threads", 1, "--seconds", 0.01, "--json")
    assert (run.code, list(run.rows[0])) == (0, ["onnx-fp32"])
    assert "gguf-f16: skipped: not known to this version" in run.err


def test_golden_numbers_of_generation_may_move_by_precision() -> None:
    expected = np.array([[3.0, 8.0], [2.0, 40.0]])
    assert golden_limits("f32", expected) == pytest.approx(np.array([[0.002, 0.02], [0.002, 0.08]]))
    half, few = golden_limits("bf16", expected), golden_limits("q4_0", expected)
    assert (golden_limits("f16", expected) == half).all()
    assert (half < few).all()
    assert (golden_limits(None, expected) == few).all()
