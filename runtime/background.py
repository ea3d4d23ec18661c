"""A call that runs beside the caller's own work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background(Generic[T]):
    """Starts a call in a thread at once. It pays where the call is native code or awaits a disk."""

    def __init__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        def run() -> None:
            try:
                self._found.append(call(*args, **kwargs))
            except BaseException as err:  # noqa: BLE001  `result` raises it, whatever it is
                self._error = err

        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> T:
        """Wait for the call; what it returned. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]
