"""llama.cpp through llama-cpp-python's plain ctypes layer, loaded lightly and silenced.

Importing the package `llama_cpp` runs its high-level half too (disk cache, templates, server
types): 0.3 s and 20 MB that an engine fed with token ids has no use for.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import threading
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgelm.runtime.errors import MissingExtra, TargetUnavailable

_PACKAGE = "llama_cpp"
_SPINS = "GOMP_SPINCOUNT"
_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_lock = threading.Lock()
_library: Any = None
_log_callback: Any = None  # ctypes keeps no reference of its own
_errors: deque[str] = deque(maxlen=8)


def load() -> Any:
    """The module `llama_cpp.llama_cpp`, its backend started. Raises MissingExtra."""
    global _library
    with _lock:
        if _library is None:
            _library = _start(_import_low_level())
        return _library


def last_errors() -> str:
    """What llama.cpp logged as errors since the last call, oldest first, on one line."""
    text = "; ".join(line for line in _errors if line)
    _errors.clear()
    return text or "no reason given"


def require(status: int) -> None:
    """Raise TargetUnavailable where a call of llama.cpp's did not end with 0."""
    if status != 0:
        raise TargetUnavailable(f"llama.cpp failed ({status}): {last_errors()}")


def _import_low_level() -> types.ModuleType:
    name = f"{_PACKAGE}.{_PACKAGE}"
    if _PACKAGE in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtra("llama-cpp-python", "gguf")
    # A package of the same place without its __init__ stands in while the one module is imported;
    # a later `import llama_cpp` finds no package, runs the real __init__ and shares the module.
    stand_in = types.ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = stand_in
    try:
        with _short_spins():
            return importlib.import_module(name)
    except (OSError, RuntimeError) as err:  # the shared library is missing or of another system
        raise TargetUnavailable(
            f"llama-cpp-python's library cannot be loaded: {err}",
            hint="reinstall it with: pip install --force-reinstall --no-deps llama-cpp-python",
        ) from err
    finally:
        if sys.modules.get(_PACKAGE) is stand_in:
            del sys.modules[_PACKAGE]


@contextmanager
def _short_spins() -> Iterator[None]:
    """Let GNU OpenMP, which reads its settings when it is loaded, wait politely.

    Its threads spin for milliseconds at each of the hundreds of barriers of a call; on a machine
    busy with other work that made two threads ten times slower than one."""
    if any(name in os.environ for name in (_SPINS, "OMP_WAIT_POLICY")):
        yield
        return
    os.environ[_SPINS] = "1000"  # some tens of microseconds
    try:
        yield
    finally:
        os.environ.pop(_SPINS, None)


def _start(library: Any) -> Any:
    global _log_callback

    def on_log(level: int, text: bytes, _user_data: Any) -> None:
        if level == _LEVEL_ERROR:
            _errors.append(text.decode("utf-8", "replace").strip())

    _log_callback = library.llama_log_callback(on_log)
    library.llama_log_set(_log_callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library
