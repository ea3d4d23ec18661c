"""Kept stages: named by their inputs, finished by one rename, taken by whoever wants the same."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from edgelm.compiler.cache import StageCache
from edgelm.runtime.errors import StorageError


@pytest.fixture
def cache(tmp_path: Path) -> StageCache:
    return StageCache(tmp_path / "cache")


def never(folder: Path) -> None:
    raise AssertionError("the stage is kept, nobody is to make it again")


def test_the_key_changes_with_each_input_and_not_with_their_order(cache: StageCache) -> None:
    base = cache.key("lower", 1, {"a": 1, "b": [1, 2]})
    assert cache.key("lower", 1, {"b": [1, 2], "a": 1}) == base
    others = [
        cache.key("verify", 1, {"a": 1, "b": [1, 2]}),
        cache.key("lower", 2, {"a": 1, "b": [1, 2]}),
        cache.key("lower", 1, {"a": 2, "b": [1, 2]}),
        cache.key("lower", 1, {"a": 1, "b": [2, 1]}),
        cache.key("lower", 1, {"a": 1, "b": [1, 2], "c": None}),
        cache.key("lower", 1, {"a": "1", "b": [1, 2]}),
    ]
    assert len({base, *others}) == 7


def test_a_finished_stage_is_found_and_not_made_again(cache: StageCache) -> None:
    assert cache.find("lower", "k") is None
    made = cache.make("lower", "k", lambda f: (f / "x").write_text("1") and None, resume=False)
    assert cache.find("lower", "k") == made
    assert cache.make("lower", "k", never, resume=True) == made
    assert (made / "x").read_text() == "1"
    assert cache.find("lower", "other") is None


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_run_leaves_a_partial_folder_only(cache: StageCache, resume: bool) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make("finetune", "k", interrupted, resume=resume)
    assert cache.find("finetune", "k") is None

    seen: list[list[str]] = []

    def again(folder: Path) -> None:
        seen.append(sorted(p.name for p in folder.iterdir()))
        (folder / "done").write_text("whole")

    made = cache.make("finetune", "k", again, resume=resume)
    assert seen == [["checkpoint"] if resume else []]
    assert (made / "done").read_text() == "whole"


def test_two_that_want_the_same_stage_take_turns(cache: StageCache) -> None:
    began, go_on = threading.Event(), threading.Event()
    runs: list[Path] = []

    def slow(folder: Path) -> None:
        runs.append(folder)
        began.set()
        assert go_on.wait(10)

    results: list[Path] = []

    def want() -> None:
        results.append(cache.make("lower", "k", slow, resume=False))

    threads = [threading.Thread(target=want) for _ in range(2)]
    threads[0].start()
    assert began.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(runs) == 1
    assert results[0] == results[1] == cache.find("lower", "k")


def test_a_full_disk_is_told_and_nothing_is_finished(cache: StageCache) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="the disk is full"):
        cache.make("lower", "k", full, resume=False)
    assert cache.find("lower", "k") is None


def test_a_full_disk_is_told_as_such_and_leaves_no_finished_stage(tmp_path) -> None:
    """On a real full disk, where torch and safetensors fail in errors of their own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        cache = StageCache(disk)
        torch = pytest.importorskip("torch")
        save_file = pytest.importorskip("safetensors.torch").save_file
        big = torch.zeros(1 << 20)
        for i, save in enumerate(
            (
                lambda folder: torch.save(big, folder / "a.pt"),
                lambda folder: save_file({"x": big}, folder / "a.safetensors"),
                lambda folder: (folder / "a").write_bytes(b"x" * (1 << 22)),
            )
        ):
            with pytest.raises(StorageError, match="the disk is full"):
                cache.make("pass", str(i), save, resume=False)
            assert cache.find("pass", str(i)) is None
    finally:
        subprocess.run(["umount", str(disk)], check=True)
