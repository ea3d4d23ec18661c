"""A call beside the caller's own work."""

from __future__ import annotations

import threading

import pytest

from edgelm.runtime.background import Background
from edgelm.runtime.errors import TamperedError


def test_it_runs_beside_the_caller_and_gives_its_result() -> None:
    go = threading.Event()
    running = Background(lambda n: n if go.wait(10) else 0, 7)
    go.set()
    assert running.result() == running.result() == 7


def test_what_it_raised_is_raised_where_it_is_waited_for() -> None:
    def fail() -> int:
        raise TamperedError("changed")

    failed = Background(fail)
    with pytest.raises(TamperedError, match="changed"):
        failed.result()
