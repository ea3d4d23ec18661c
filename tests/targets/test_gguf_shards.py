"""A model over several files: llama.cpp opens them, and only whole sets that fit are taken."""

from __future__ import annotations

import itertools
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_decoders
from gguf import GGUFReader
from gguf_oracle import changed_headers, llama_logits, outcomes, some_ids

from edgelm.runtime.engine import Chunk, DecoderOptions, EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.shards import MAX_FILES, read_model, shard_names, split_file
from edgelm.targets.gguf.unpack import unpack

GENERATE = Task("text-generation")
TEXT = TextLimits(64)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny_decoders.make_decoder(tmp_path_factory.mktemp("model"), "qwen2")


def lower(model_dir, folder, precision="f32", split_bytes=None, task=GENERATE, text=TEXT):
    folder.mkdir(parents=True)
    request = LowerRequest(model_dir, task, text, precision, folder, split_bytes=split_bytes)
    lowered = TARGET.lower(request)
    assert sorted(p.name for p in folder.iterdir()) == sorted(lowered.files)
    return lowered


@pytest.fixture(scope="module")
def whole(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    lower(model_dir, folder)
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def parts(model_dir, tmp_path_factory):
    """A set of files."""
    folder = tmp_path_factory.mktemp("parts") / "out"
    lowered = lower(model_dir, folder, split_bytes=200_000)
    return [folder / name for name in lowered.files]


def opened(folder: Path, names) -> np.ndarray:
    """Logits of the engine."""
    files = tuple(FileEntry(name, "0" * 64, 1) for name in names)
    variant = Variant("v", "gguf", "f32", files, {"decoder": True, "max_tokens": 64})
    session = TARGET.open_decoder(folder, variant, TEXT, DecoderOptions("cpu", 1))
    try:
        return session.extend([Chunk(0, np.arange(20, dtype=np.int32), 20)]).copy()
    finally:
        session.close()


def test_llama_cpp_answers_the_same(model_dir, whole, parts):
    count = len(parts)
    assert count > 3
    assert [p.name for p in parts] == [
        f"model-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)
    ]
    ids = some_ids(model_dir, 40)
    assert (llama_logits(parts[0], ids) == llama_logits(whole, ids)).all()
    assert (
        opened(parts[0].parent, shard_names(parts[0].name)) == opened(whole.parent, ["model.gguf"])
    ).all()


def test_no_file_is_larger_and_no_tensor_is_cut(whole, parts):
    tables = {"token_embd.weight", "output.weight"}
    one, found = read_header(whole), read_model(parts[0])
    assert list(found.tensors) == list(one.tensors) and found.keys == one.keys
    assert read_facts(found, parts[0]) == read_facts(one, whole)
    for name, tensor in found.tensors.items():
        raw = [
            t.path.read_bytes()[t.offset : t.offset + t.n_bytes]
            for t in (tensor, one.tensors[name])
        ]
        assert raw[0] == raw[1], name
    for path in parts:
        held = read_header(path).tensors
        assert path.stat().st_size <= 200_000 or (len(held) == 1 and set(held) <= tables)
    # as full as they can be: no two neighbours would fit into one
    sizes = [path.stat().st_size for path in parts[1:]]
    assert all(a + b > 200_000 for a, b in itertools.pairwise(sizes))


def test_the_keys_are_llama_cpps(whole, parts):
    n_tensors = len(GGUFReader(whole).tensors)
    for no, path in enumerate(parts):
        reader = GGUFReader(path)
        said = {k: f.contents() for k, f in reader.fields.items() if k.startswith("split.")}
        kinds = [reader.fields[k].types[0].name for k in sorted(said)]
        assert said == {
            "split.no": no, "split.count": len(parts), "split.tensors.count": n_tensors
        }  # fmt: skip
        assert kinds == ["UINT16", "UINT16", "INT32"]
        own = {k for k in reader.fields if not k.startswith(("GGUF.", "split."))}
        if no > 0:
            assert own == set()
        else:
            names = {k for k in GGUFReader(whole).fields if not k.startswith("GGUF.")}
            assert own == names


def test_a_file_that_is_small_enough_stays(model_dir, whole, tmp_path):
    assert lower(model_dir, tmp_path / "out", split_bytes=10**9).files == ("model.gguf",)
    assert (tmp_path / "out/model.gguf").read_bytes() == whole.read_bytes()
    path = shutil.copy(whole, tmp_path / "model.gguf")
    assert split_file(Path(path), whole.stat().st_size) == ["model.gguf"]


def test_every_tensor_alone(whole, tmp_path):
    path = Path(shutil.copy(whole, tmp_path / "model.gguf"))
    names = split_file(path, 1)
    held = [len(read_header(tmp_path / name).tensors) for name in names]
    assert held == [0] + [1] * (len(names) - 1) and not path.exists()
    ids = np.arange(10)
    assert (llama_logits(tmp_path / names[0], ids) == llama_logits(whole, ids)).all()


def test_quantized(model_dir, tmp_path):
    lowered = lower(model_dir, tmp_path / "out", "q8_0", 60_000)
    assert len(lowered.files) > 2
    lower(model_dir, tmp_path / "one", "q8_0")
    both = opened(tmp_path / "out", lowered.files), opened(tmp_path / "one", ["model.gguf"])
    assert (both[0] == both[1]).all()


def test_encoders_and_the_vectors_of_their_types(tmp_path):
    """Pairs, whose token table is read by edgelm itself, from the file that it is in."""
    task = Task("text-classification", ("a", "b"), pair=True)
    text = TextLimits(60, type_ids=True)
    model = tiny.make_model(tmp_path / "model", "bert", labels=("a", "b"))
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (3, 12)).astype(np.int32)
    types = (np.arange(12) > 5).astype(np.int32) * np.ones((3, 1), np.int32)
    answers = []
    for name, split in (("one", None), ("many", 10_000)):
        lowered = lower(model, tmp_path / name, "f16", split, task, text)
        assert (len(lowered.files) > 2) == (split is not None)
        files = tuple(FileEntry(f, "0" * 64, 1) for f in lowered.files)
        variant = Variant("v", "gguf", "f16", files, lowered.options)
        session = TARGET.open(tmp_path / name, variant, task, EngineOptions("cpu", 1))
        answers.append(session.run(TokenBatch(ids, np.full(3, 12, np.int32), types)))
        session.close()
    assert (answers[0] == answers[1]).all()


def test_too_many_files(whole, tmp_path, monkeypatch):
    from edgelm.targets.gguf import shards

    monkeypatch.setattr(shards, "MAX_FILES", 5)
    path = Path(shutil.copy(whole, tmp_path / "model.gguf"))
    with pytest.raises(ModelError, match="at most 5 are made") as err:
        split_file(path, 1)
    assert "gguf.split_size_mb" in str(err.value.hint)
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"] and MAX_FILES > 5


def copied(parts, folder: Path) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copy(path, folder)) for path in parts]


def with_key(path: Path, key: str, value: bytes) -> None:
    raw = path.read_bytes()
    at = raw.index(key.encode()) + len(key) + 4
    path.write_bytes(raw[:at] + value + raw[at + len(value) :])


def with_kind(path: Path, key: str, kind: int) -> None:
    raw = path.read_bytes()
    at = raw.index(key.encode()) + len(key)
    path.write_bytes(raw[:at] + struct.pack("<I", kind) + raw[at + 4 :])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("missing", "00002-of-.*cannot be read"),
        ("swapped", r"split\.no is not that of file 2"),
        ("count", "is one of 4 files, which its name does not say"),
        ("count of another", r"split\.count is not that of file 3"),
        ("total", "tensors.count is not that of file 2"),
        ("totals", r"hold \d+ of 7 tensors"),
        ("twice", "a tensor of it is in another file too"),
        ("type", r"split\.no is of the type 4"),
        ("short", "reaches past the file's end"),
        ("renamed", "its name does not say"),
    ],
)
def test_sets_that_do_not_fit(broken, says, parts, tmp_path):
    files = copied(parts, tmp_path / "set")
    first = files[0]
    if broken == "missing":
        files[1].unlink()
    elif broken == "swapped":
        files[1].rename(tmp_path / "other")
        files[2].rename(files[1])
        (tmp_path / "other").rename(files[2])
    elif broken == "count":
        with_key(first, "split.count", struct.pack("<H", 4))
    elif broken == "count of another":
        with_key(files[2], "split.count", struct.pack("<H", 9))
    elif broken == "total":
        with_key(files[1], "split.tensors.count", struct.pack("<i", 7))
    elif broken == "totals":
        for path in files:
            with_key(path, "split.tensors.count", struct.pack("<i", 7))
    elif broken == "twice":
        with_key(Path(shutil.copy(files[3], files[2])), "split.no", struct.pack("<H", 2))
    elif broken == "type":
        with_kind(files[1], "split.no", 4)
    elif broken == "short":
        files[1].write_bytes(files[1].read_bytes()[:-64])
    else:
        first = first.rename(tmp_path / "set/other.gguf")
    with pytest.raises(BundleError, match=says):
        read_model(first)


def test_files_that_are_not_the_first_are_not_opened(parts):
    for path in (parts[1], parts[-1]):
        with pytest.raises(BundleError):
            read_facts(read_model(path), path)
    names = [path.name for path in parts]
    for some in (names[:-1], names[1:], names[:1], [*names, "model.gguf"], ["a.gguf", "b.gguf"]):
        with pytest.raises(BundleError):
            opened(parts[0].parent, some)


def test_no_changed_header_of_a_set_ends_the_process(parts, tmp_path):
    """The first file is the changed one, then the second."""
    changed = changed_headers(parts[0], tmp_path, 30)
    paths = []
    for i, path in enumerate(changed):
        files = copied(parts, tmp_path / f"set-{i}")
        paths.append(path.replace(files[0]))
    rng = np.random.default_rng(0)
    size = min(t.offset for t in read_header(parts[1]).tensors.values())
    for i in range(30):
        files = copied(parts, tmp_path / f"other-{i}")
        raw = bytearray(files[1].read_bytes())
        raw[rng.integers(size)] = rng.choice((0, 255, rng.integers(256)))
        files[1].write_bytes(raw)
        paths.append(files[0])
    assert set(outcomes(paths)) == {"opened", "refused"}


def test_a_set_is_unpacked(model_dir, whole, parts, tmp_path):
    for name, path in (("one", whole), ("many", parts[0])):
        (tmp_path / name).mkdir()
        unpack(path, tmp_path / name, lambda done, total: None)
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "many")]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
