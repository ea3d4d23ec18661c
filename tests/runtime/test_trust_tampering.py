"""A signed bundle with anything changed in it is refused, and no native parser is entered before.

Spies stand where edgelm hands a file to native code (ONNX Runtime, `tokenizers`), and before the
engines' halves that hand them on (ONNX Runtime, llama.cpp).
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import FILES, make_bundle

import edgelm
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.trust.keys import load_signing_key, make_key
from edgelm.runtime.trust.sign import sign_bundle

pytest.importorskip("cryptography")

READ = [p for p in FILES if p.startswith(("tokenizer/", "variants/onnx-"))]  # by load


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, edgelm.Trust]:
    root = tmp_path_factory.mktemp("signed")
    make_key(root / "release.key", None)
    bundle = make_bundle(root / "tiny.edgelm")
    sign_bundle(bundle, load_signing_key(root / "release.key"))
    return bundle, edgelm.Trust((root / "release.pub",))


@pytest.fixture
def copy(signed: tuple[Path, edgelm.Trust], tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(signed[0], tmp_path / "copy.edgelm"))


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which native parsers were entered."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("llama_cpp")
    from edgelm.runtime import tokenizer
    from edgelm.targets.gguf import engine as gguf
    from edgelm.targets.onnx import engine as onnx

    found: list[str] = []

    def spy(owner: object, name: str, what: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **rest: object) -> object:
            found.append(what)
            return real(*args, **rest)

        monkeypatch.setattr(owner, name, call)

    spy(ort, "InferenceSession", "onnxruntime")
    spy(onnx.OnnxSession, "__init__", "onnx")
    spy(gguf.GgufSession, "__init__", "gguf")
    spy(tokenizer.Tokenizer, "__init__", "tokenizer")
    return found


def load(bundle: Path, trust: edgelm.Trust, variant: str = "onnx-fp32") -> None:
    edgelm.load(bundle, variant=variant, threads=1, trust=trust).close()


def check_all(bundle: Path, trust: edgelm.Trust) -> None:
    opened = Bundle(bundle, trust)
    opened.check(opened.all_files())


def test_the_spies_see_parsers(signed, entered: list[str]) -> None:
    for variant, engine in (("onnx-fp32", "onnx"), ("gguf-f16", "gguf")):
        entered.clear()
        with pytest.raises(edgelm.BundleError, match=r"model|options"):  # well signed
            load(*signed, variant)
        assert set(entered) >= {engine, "tokenizer"}
        assert ("onnxruntime" in entered) == (engine == "onnx")


@pytest.mark.parametrize("name", ["edgelm.json", "model.sig"])
def test_every_byte_of_manifest_and_signature(signed, copy, entered, name: str) -> None:
    path = copy / name
    raw = path.read_bytes()
    noise = random.Random(0)
    for at in range(len(raw)):
        for flip in (1 << noise.randrange(8), 0x20):  # any bit; upper and lower case
            path.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
            with pytest.raises((edgelm.UntrustedError, edgelm.TamperedError)):
                load(copy, signed[1])
    for cut in (0, 1, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises((edgelm.UntrustedError, edgelm.TamperedError)):
            load(copy, signed[1])
    path.write_bytes(raw + b"x")
    with pytest.raises((edgelm.UntrustedError, edgelm.TamperedError)):
        load(copy, signed[1])
    assert entered == []


def flip_random_bit(path: Path, noise: random.Random) -> bytes:
    """Flip one, and give what was there before."""
    raw = path.read_bytes()
    at = noise.randrange(len(raw))
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << noise.randrange(8)]) + raw[at + 1 :])
    return raw


@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips_of_what_is_loaded(signed, copy: Path, entered: list[str], n: int) -> None:
    noise = random.Random(n)
    for _ in range(n):
        name = noise.choice(READ)
        raw = flip_random_bit(copy / name, noise)
        entered.clear()
        with pytest.raises(edgelm.TamperedError, match=Path(name).name):
            load(copy, signed[1])
        assert not name.startswith("tokenizer/") or "tokenizer" not in entered
        assert not name.startswith("variants/") or {"tokenizer"} >= set(entered)
        (copy / name).write_bytes(raw)


@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips_of_any_file(signed, copy: Path, entered: list[str], n: int) -> None:
    """As `edgelm verify` and installers look at bundles: every file."""
    noise = random.Random(n)
    for _ in range(n):
        name = noise.choice(list(FILES))
        raw = flip_random_bit(copy / name, noise)
        opened = Bundle(copy, signed[1])
        with pytest.raises(edgelm.TamperedError, match=Path(name).name):
            opened.check(opened.all_files())
        (copy / name).write_bytes(raw)
    assert entered == []


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed" + path.suffix))


def outside(path: Path) -> Path:
    """A place out of the bundle."""
    return next(p for p in path.parents if p.name == "copy").with_name(f"kept-{path.name}")


def symlink(path: Path) -> None:
    kept = outside(path)
    path.rename(kept)
    path.symlink_to(kept)


def hard_link(path: Path) -> None:
    os.link(path, outside(path))


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def beside(path: Path) -> None:
    path.with_name("extra").write_bytes(b"")


def hidden_beside(path: Path) -> None:
    path.with_name(".gitignore").write_bytes(b"*")


def linked_beside(path: Path) -> None:
    path.with_name("extra").symlink_to(path.name)


@pytest.mark.parametrize(
    "spoil",
    [
        remove,
        rename,
        symlink,
        hard_link,
        into_directory,
        into_pipe,
        beside,
        hidden_beside,
        linked_beside,
    ],
)
def test_every_file_of_the_set(
    signed, copy: Path, entered: list[str], spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    for i, name in enumerate([*FILES, "edgelm.json", "model.sig"]):
        deep = Path(shutil.copytree(copy, tmp_path / str(i) / "copy"))
        spoil(deep / name)
        with pytest.raises((edgelm.UntrustedError, edgelm.TamperedError)):
            load(deep, signed[1])
        assert entered == []


def test_every_two_files_swapped(signed, copy: Path, entered: list[str]) -> None:
    names = [*FILES, "edgelm.json", "model.sig"]
    for i, a in enumerate(names):
        for b in names[:i]:
            raw = (copy / a).read_bytes(), (copy / b).read_bytes()
            (copy / a).write_bytes(raw[1])
            (copy / b).write_bytes(raw[0])
            with pytest.raises((edgelm.UntrustedError, edgelm.TamperedError)):
                check_all(copy, signed[1])
            (copy / a).write_bytes(raw[0])
            (copy / b).write_bytes(raw[1])
    assert entered == []


def test_a_directory_that_is_a_link(signed, copy: Path, entered: list[str], tmp_path: Path) -> None:
    for name in ("tokenizer", "variants", "variants/onnx-fp32"):
        (copy / name).rename(tmp_path / "moved")
        (copy / name).symlink_to(tmp_path / "moved")
        with pytest.raises(edgelm.TamperedError):
            load(copy, signed[1])
        (copy / name).unlink()
        (tmp_path / "moved").rename(copy / name)
    link = tmp_path / "current"  # the bundle itself may be linked to, as a store does
    link.symlink_to(copy)
    opened = Bundle(link, signed[1])
    opened.check(opened.all_files())
    assert entered == []


def test_a_link_put_in_place_after_the_names_were_looked_at(signed, copy: Path) -> None:
    opened = Bundle(copy, signed[1])
    kept = copy.parent / "kept"
    path = copy / "card.md"
    path.rename(kept)
    path.symlink_to(kept)
    with pytest.raises(edgelm.TamperedError):
        opened.check(opened.all_files())


def test_signatures_of_another_bundle(signed, copy: Path, entered: list[str], tmp_path) -> None:
    other = make_bundle(tmp_path / "other", {**FILES, "card.md": b"another"})
    sign_bundle(other, load_signing_key(signed[0].parent / "release.key"))
    shutil.copyfile(other / "model.sig", copy / "model.sig")
    with pytest.raises(edgelm.TamperedError):
        load(copy, signed[1])
    shutil.copyfile(other / "edgelm.json", copy / "edgelm.json")
    with pytest.raises(edgelm.TamperedError, match=r"card\.md"):
        check_all(copy, signed[1])
    assert entered == []


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_changed_between_its_check_and_its_opening(signed, copy: Path, shared: bool) -> None:
    """Found out where this user alone can write; where others can, the copy is not touched."""
    if shared:
        copy.chmod(0o777)
    bundle = Bundle(copy, signed[1])
    variant = next(v for v in bundle.manifest.variants if v.name == "onnx-fp32")
    closed: list[bytes] = []

    class Engine:
        def __init__(self, folder: Path) -> None:
            (copy / variant.files[0].path).write_bytes(b"other")
            self.read = (folder / variant.files[0].path).read_bytes()

        def close(self) -> None:
            closed.append(self.read)

    if shared:
        good = (signed[0] / variant.files[0].path).read_bytes()
        assert bundle.open_variant(variant, Engine).read == good
    else:
        with pytest.raises(edgelm.TamperedError, match="while it was opened"):
            bundle.open_variant(variant, Engine)
        assert closed == [b"other"]
