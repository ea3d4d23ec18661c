"""Weights are asked into huge pages before they are written."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import memory
import pytest

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf import bindings, loading


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_memory_that_comes_with_a_model_is_asked_into_huge_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without transparent huge pages")
    n = 40 << 20
    callback = loading._on_first_tensor(bindings.load())
    with mmap.mmap(-1, n, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as weights:
        assert callback(0.0, None)
        assert "hg" in memory.facts(weights, n // 2)["VmFlags"]
    with mmap.mmap(-1, n, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as later:
        assert callback(0.5, None)  # what comes after the first tensor is not the model's
        assert "hg" not in memory.facts(later, n // 2)["VmFlags"]


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    library = bindings.load()
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BundleError, match="cannot load it"):
        loading.load_model(library, path, library.llama_model_default_params())
