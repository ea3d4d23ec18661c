"""Memory that was taken is found, and moved into huge pages."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import memory
import pytest

from edgelm.runtime import huge_pages
from edgelm.runtime.huge_pages import HUGE_BYTES, Growth

N = 40 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")


def anonymous(n_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_only_what_came_later_is_growth() -> None:
    with anonymous(N) as earlier:
        growth = Growth()
        with anonymous(N) as later:
            regions = growth.regions()
            start = memory.address_of(later)
            assert all(s % HUGE_BYTES == 0 == e % HUGE_BYTES for s, e in regions)
            assert any(s <= start + N // 2 < e for s, e in regions)
            held = memory.address_of(earlier) + N // 2
            assert not any(s <= held < e for s, e in regions)
        assert Growth().regions() == []


def test_written_memory_is_moved_and_keeps_what_it_holds() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without transparent huge pages")
    growth = Growth()
    with anonymous(N) as weights:
        weights.write(bytes(range(256)) * (N // 256))
        before = int(memory.facts(weights, N // 2)["AnonHugePages"][0])
        huge_pages.collapse(growth.regions())
        after = int(memory.facts(weights, N // 2)["AnonHugePages"][0])
        if after == before:
            pytest.skip("a kernel that moves no written pages, or no free huge page")
        assert weights[:] == bytes(range(256)) * (N // 256)
