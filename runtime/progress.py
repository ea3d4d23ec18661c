"""What a long piece of work says of itself, on stderr: a line that moves on a terminal, plain
lines elsewhere, JSON lines for machines. The work never formats text; it calls this object."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

Style = Literal["auto", "json", "quiet"]
REDRAW_S = 0.1  # of the moving line
REPORT_S = 30.0  # between two plain lines of one stage


class Progress:
    """`with progress.stage("finetune"): progress.advance(done, total, "loss 0.31")`."""

    def __init__(self, style: Style = "auto", stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        moving = style == "auto" and self._stream.isatty()
        self._mode = "moving" if moving else "lines" if style == "auto" else style
        self._stage = ""
        self._started = self._shown = 0.0

    @contextmanager
    def stage(self, name: str, cached: bool = False) -> Iterator[None]:
        """A named part of the work; `cached` says that its result is there already."""
        self._stage, self._started, self._shown = name, time.monotonic(), 0.0
        if self._mode == "moving" and not cached:
            self._draw(f"{name} …")
        try:
            yield
        except BrokenPipeError:  # the reader of the results has seen enough
            raise
        except BaseException:
            self._write(f"{name}: failed", event="failed", seconds=self._seconds())
            raise
        seconds = self._seconds()
        text = f"{name}: kept from an earlier run" if cached else f"{name}: done in {seconds:.1f} s"
        self._write(text, event="cached" if cached else "done", seconds=seconds)

    def advance(self, done: int, total: int | None = None, detail: str = "") -> None:
        """`done` of `total` units are finished; `detail` is a short figure to show beside."""
        now = time.monotonic()
        wait = REDRAW_S if self._mode == "moving" else REPORT_S
        if self._shown and now - self._shown < wait:
            return
        if not self._shown and self._mode != "moving" and now - self._started < wait:
            return
        self._shown = now
        part = f"{done}/{total}" if total else f"{done}"
        left = ""
        if total and done >= 0.02 * total:  # the first steps are no measure of the rest
            left = f", {(now - self._started) / done * (total - done):.0f} s left"
        text = f"{self._stage}: {part}{left}{', ' + detail if detail else ''}"
        if self._mode == "moving":
            self._draw(text)
        else:
            self._write(text, event="progress", done=done, total=total, detail=detail)

    def note(self, text: str) -> None:
        """Something the user should know."""
        self._write(text, event="note")

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text[:100]}")
        self._stream.flush()

    def _write(self, text: str, **fields: object) -> None:
        if self._mode == "quiet":
            return
        if self._mode == "json":
            text = json.dumps({"stage": self._stage, **fields, "text": text}, ensure_ascii=False)
        elif self._mode == "moving":
            text = f"\r\x1b[2K{text}"
        self._stream.write(text + "\n")
        self._stream.flush()
