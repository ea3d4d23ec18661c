"""A model's weights through llama.cpp, on Linux in huge pages.

A token's pass reads all weights, and pages of 4 kB have to be looked up one by one on the way; of
pages of 2 MB there are few. llama.cpp lays many types of weights out anew, in
memory of its own, which the kernel is to be told of before it is written to. That is when the
model's first tensor is about to be read.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf import bindings

_MAPS = Path("/proc/self/maps")
_MADV_HUGEPAGE = 14
_HUGE = 1 << 21
_LEAST_BYTES = 4 * _HUGE  # of a mapping that is worth it


def load_model(library: Any, path: Path, params: Any) -> Any:
    """llama.cpp's pointer to the model. Raises BundleError."""
    bindings.last_errors()
    callback = _on_first_tensor(library)  # kept by us while llama.cpp may call it
    params.progress_callback = callback
    model = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise BundleError(f"{path}: llama.cpp cannot load it: {bindings.last_errors()}")
    return model


def _on_first_tensor(library: Any) -> Any:
    """For llama_model_params.progress_callback: memory that is new then is to be of huge pages."""
    before = _anonymous() if sys.platform == "linux" else None

    def progress(_done: float, _user_data: Any) -> bool:
        nonlocal before
        if before is not None:
            known, before = before, None
            _advise({s: e for s, e in _anonymous().items() if known.get(s) != e})
        return True

    make: Callable[..., Any] = library.llama_progress_callback
    return make(progress)


def _anonymous() -> dict[int, int]:
    """Start -> end of the large writable mappings without a file or name."""
    try:
        lines = _MAPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no /proc here
        return {}
    found: dict[int, int] = {}
    for line in lines:
        place, access, *rest = line.split()
        if access.startswith("rw") and len(rest) == 3:
            start, end = (int(address, 16) for address in place.split("-"))
            if end - start >= _LEAST_BYTES:
                found[start] = end
    return found


def _advise(mappings: dict[int, int]) -> None:
    """Ask for huge pages; a kernel without them says no, which is as well."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in mappings.items():
        first, last = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        madvise(first, last - first, _MADV_HUGEPAGE)
