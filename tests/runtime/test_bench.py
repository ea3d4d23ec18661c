"""The measuring process: what it imports, what it says when it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime import bench
from edgelm.runtime.bench import measure_variant


def test_the_current_folder_is_not_imported_from(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    found = measure_variant(classifier, "onnx-fp32", ["hello"], threads=1, seconds=0.01)
    assert found.texts_per_s


def test_errors_of_the_child_keep_their_type(classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))
    with (copy / "tokenizer" / "tokenizer.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(edgelm.TamperedError, match="bytes, packed with") as err:
        measure_variant(copy, "onnx-fp32", ["hello"], threads=1, seconds=0.01)
    assert err.value.hint


def test_no_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(edgelm.UsageError, match="no texts"):
        measure_variant(tmp_path, "onnx-fp32", [])


OUTPUTS = [
    (0, b'a print\n\n{"size_bytes": 3}\n', None),
    (0, b"a print\n", "its engine failed"),
    (-9, b"", "its engine failed while it was measured: Killed"),
]


@pytest.mark.parametrize(("code", "stdout", "says"), OUTPUTS, ids=range(len(OUTPUTS)))
def test_the_last_line_counts(tmp_path, monkeypatch, code, stdout, says) -> None:
    done = subprocess.CompletedProcess([], code, stdout, b"warning\nKilled\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *args, **options: done)
    if says is None:
        want = json.loads(stdout.splitlines()[-1])["size_bytes"]
        assert measure_variant(tmp_path, "v", ["a"]).size_bytes == want
    else:
        with pytest.raises(edgelm.TargetUnavailable, match=says):
            measure_variant(tmp_path, "v", ["a"])
