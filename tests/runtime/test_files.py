"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelm.runtime.errors import StorageError
from edgelm.runtime.files import replace_tree, sha256_file, write_atomic


def refuse(code: int) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def tree(folder: Path, text: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    return folder


def content(folder: Path) -> str:
    return (folder / "inner" / "file").read_text()


def test_sha256_of_a_file_longer_than_one_piece(tmp_path: Path) -> None:
    raw = os.urandom(1024) * 3000
    (tmp_path / "f").write_bytes(raw)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(raw).hexdigest()


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, "我\n")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission to write"),
    ],
)
def test_a_refused_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", refuse(code))
    with pytest.raises(StorageError, match=f"{path}: {says}"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_impossible_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "missing" / "f", tmp_path / "file" / "f"):
        with pytest.raises(StorageError, match=str(place)):
            write_atomic(place, "x")


@pytest.mark.parametrize("exists", [False, True])
def test_replace_tree(tmp_path: Path, exists: bool) -> None:
    final = tmp_path / "b.edgelm"
    if exists:
        tree(final, "old")
    replace_tree(tree(tmp_path / "staged", "new"), final)
    assert content(final) == "new"
    assert names(tmp_path) == ["b.edgelm"]


def test_a_failed_last_step_puts_the_old_tree_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, staged = tree(tmp_path / "b", "old"), tree(tmp_path / "staged", "new")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        return refuse(errno.ENOSPC)() if self == staged else rename(self, target)  # type: ignore[func-returns-value, return-value]

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        replace_tree(staged, final)
    assert content(final) == "old"
    assert names(tmp_path) == ["b", "staged"]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("step", [1, 2])
def test_killed_between_two_steps_the_next_call_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    final = tree(tmp_path / "b", "old")
    rename, calls = Path.rename, 0

    def killed_after(self: Path, target: Path) -> Path:
        nonlocal calls
        result = rename(self, target)
        calls += 1
        if calls >= step:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_after)
        with pytest.raises(Killed):
            replace_tree(tree(tmp_path / "staged", "new"), final)
    # step 1: the old tree stands beside, whole; step 2: the new one is in place
    whole = tmp_path / ".b.old" if step == 1 else final
    assert content(whole) == ("old" if step == 1 else "new")

    replace_tree(tree(tmp_path / "again", "newer"), final)
    assert content(final) == "newer"
    assert [n for n in names(tmp_path) if n != "staged"] == ["b"]
