"""A model's weights through llama.cpp, on Linux in huge pages.

llama.cpp lays many types of weights out anew, in memory of its own, which the kernel is to be told
of before it is written to. That is when the model's first tensor is about to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelm.runtime import huge_pages
from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf import bindings


def load_model(library: Any, path: Path, params: Any) -> Any:
    """llama.cpp's pointer to the model. Raises BundleError."""
    bindings.last_errors()
    callback = _on_first_tensor(library)  # kept by us while llama.cpp may call it
    params.progress_callback = callback
    model = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise BundleError(f"{path}: llama.cpp cannot load it: {bindings.last_errors()}")
    return model


def place(library: Any, params: Any, gpu_index: int | None, *, on_gpu: bool) -> None:
    """Let llama_model_params say where the weights go: over all GPUs, unless one is named."""
    params.n_gpu_layers = -1 if on_gpu else 0
    if gpu_index is not None:
        params.split_mode, params.main_gpu = library.LLAMA_SPLIT_MODE_NONE, gpu_index


def _on_first_tensor(library: Any) -> Any:
    """For llama_model_params.progress_callback: memory that is new then is to be of huge pages."""
    growth: huge_pages.Growth | None = huge_pages.Growth()

    def progress(_done: float, _user_data: Any) -> bool:
        nonlocal growth
        if growth is not None:
            taken, growth = growth, None
            huge_pages.ask(taken.regions())
        return True

    make: Callable[..., Any] = library.llama_progress_callback
    return make(progress)
