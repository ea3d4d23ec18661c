"""A bundle whose files are not those that were packed is refused before an engine reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import EngineOptions, Session, TokenBatch
from edgelm.runtime.verify import verify_files
from edgelm.targets import get_target


@pytest.fixture
def copy(classifier: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes() or b"\0")
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def into_symlink(path: Path) -> None:
    kept = path.with_name("kept")
    path.rename(kept)
    path.symlink_to(kept)


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil", [flip_byte, cut_short, append, Path.unlink, into_symlink, into_directory]
)
def test_each_file_is_checked(copy: Path, spoil) -> None:
    bundle = Bundle(copy)
    bundle.check(bundle.all_files())
    needed = {v.name: [*bundle.tokenizer_files(), *v.files] for v in bundle.manifest.variants}
    spare = copy.parent / "spare"
    for entry in bundle.all_files():
        path = copy / entry.path
        shutil.copytree(copy, spare)
        spoil(path)
        with pytest.raises(edgelm.TamperedError, match=path.name):
            bundle.check(bundle.all_files())
        assert not verify_files(bundle).ok
        for variant, entries in needed.items():
            if entry in entries:
                with pytest.raises(edgelm.TamperedError, match=path.name) as err:
                    edgelm.load(copy, variant=variant)
                assert "fresh copy" in str(err.value.hint)
        shutil.rmtree(copy)
        spare.rename(copy)


IDS = np.full((12, 16), 5, np.int32)  # of more tokens than one thread is given
BATCH = TokenBatch(IDS, np.full(12, 16, np.int32), np.zeros_like(IDS))


def opened(bundle: Bundle) -> Session:
    (variant,) = (v for v in bundle.manifest.variants if v.name == "onnx-fp32")
    options = EngineOptions(threads=2)
    task = bundle.manifest.task
    return bundle.open_variant(
        variant, lambda folder: get_target("onnx").open(folder, variant, task, options)
    )


def test_a_link_put_elsewhere_changes_no_opened_model(copy: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(copy, target_is_directory=True)
    session = opened(Bundle(link))
    expected = session.run(BATCH, shared=True)
    link.unlink()
    link.symlink_to(tmp_path / "nothing", target_is_directory=True)
    np.testing.assert_allclose(session.run(BATCH), expected, atol=1e-5)


def test_a_session_opened_later_is_of_the_same_file(copy: Path) -> None:
    session = opened(Bundle(copy))
    flip_byte(copy / "variants" / "onnx-fp32" / "model.onnx")
    with pytest.raises(edgelm.TamperedError, match="after it was opened"):
        session.run(BATCH)


def test_other_variants_and_papers_do_not_hinder_loading(copy: Path) -> None:
    for path in copy.glob("variants/gguf-*/*"):
        flip_byte(path)
    flip_byte(copy / "report.html")
    edgelm.load(copy, variant="onnx-fp32", threads=1).close()


@pytest.mark.parametrize("name", ["extra.txt", "variants/onnx-fp32/.hidden"])
def test_an_extra_file_is_found(copy: Path, name: str) -> None:
    assert verify_files(Bundle(copy)).ok
    (copy / name).write_text("x")
    assert Bundle(copy).extra_files() == [name]
    assert name in verify_files(Bundle(copy)).detail


def test_a_link_to_a_folder_is_an_extra_file(copy: Path) -> None:
    (copy / "linked").symlink_to(copy.parent, target_is_directory=True)
    assert Bundle(copy).extra_files() == ["linked"]


def test_a_file_that_cannot_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgelm.runtime.bundle.sha256_stream", refuse)
    with pytest.raises(edgelm.BundleError, match="cannot be read: Permission denied"):
        edgelm.load(copy, variant="onnx-fp32")
