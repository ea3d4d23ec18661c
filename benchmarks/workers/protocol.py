"""The worker's side: load, warm up, say so, then do one timed pass for each line on stdin.

Runs in edgelm's environment and in the peers', so it imports the standard library only.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Options = dict[str, Any]

# Answers go out alone: what libraries print, some of them imported before this, goes to stderr.
_answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
sys.stdout = sys.stderr


def options() -> Options:
    """What the driver said on the command line."""
    return json.loads(sys.argv[1])


def read_texts(path: str) -> list[str]:
    """A JSON list of texts."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def versions(*packages: str) -> dict[str, str]:
    """As installed in this environment."""
    return {package: importlib.metadata.version(package) for package in packages}


def say(**answer: Any) -> None:
    """One JSON line to the driver."""
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


def serve(work: Callable[[Options], Any], **ready: Any) -> None:
    """Answer each question with the seconds that `work(question)` took."""
    say(**ready)
    for line in sys.stdin:
        question = json.loads(line)
        gc.collect()
        started = time.perf_counter()
        work(question)
        say(seconds=time.perf_counter() - started)


def answer_all(work: Callable[[Options], dict[str, Any]], **ready: Any) -> None:
    """Answer each question with the figures that `work(question)` gives."""
    say(**ready)
    for line in sys.stdin:
        question = json.loads(line)
        gc.collect()
        say(**work(question))
