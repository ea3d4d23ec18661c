"""What is said of long work, and where."""

from __future__ import annotations

import io
import json

import pytest

from edgelm.runtime.progress import Progress, Style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(style: Style, stream: io.StringIO) -> str:
    """Two stages and one that fails."""
    progress = Progress(style, stream)
    with progress.stage("lower"):
        progress.advance(1, 10, "loss 0.5")
        progress.advance(10, 10)
        progress.note("我 said")
    with progress.stage("verify", cached=True):
        pass
    with pytest.raises(KeyboardInterrupt), progress.stage("pack"):
        raise KeyboardInterrupt
    return stream.getvalue()


def test_json_lines() -> None:
    lines = [json.loads(line) for line in work("json", io.StringIO()).splitlines()]
    assert [(e["stage"], e["event"]) for e in lines] == [
        ("lower", "note"),
        ("lower", "done"),
        ("verify", "cached"),
        ("pack", "failed"),
    ]
    assert lines[0]["text"] == "我 said"
    assert all(e["seconds"] >= 0 for e in lines if "seconds" in e)


def test_quiet_is_silent() -> None:
    assert work("quiet", Terminal()) == ""


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = work("auto", io.StringIO())
    assert "\r" not in text
    assert "\x1b" not in text
    assert "我 said\n" in text
    assert "verify: kept from an earlier run\n" in text
    assert text.endswith("pack: failed\n")


def test_a_moving_line_on_a_terminal() -> None:
    text = work("auto", Terminal())
    assert "lower: 1/10" in text
    assert "loss 0.5" in text
    assert "verify …" not in text  # nothing moves where nothing is done


def test_json_progress_tells_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.runtime.progress.REPORT_S", 0.0)
    stream = io.StringIO()
    progress = Progress("json", stream)
    with progress.stage("finetune"):
        progress.advance(3, 12, "loss 0.31")
    first = json.loads(stream.getvalue().splitlines()[0])
    assert (first["event"], first["done"], first["total"]) == ("progress", 3, 12)
    assert first["detail"] == "loss 0.31"
