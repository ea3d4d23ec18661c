"""The written file: what others read in it, and what happens when it is broken."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgelm.runtime.engine import EngineOptions
from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET, bindings
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.head import Head, load_head

# Loads each file given, as the engine does, and says what came of it; it must never die.
OPEN_ALL = """
import sys
from pathlib import Path
from edgelm.runtime.engine import EngineOptions
from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import FileEntry, Task, Variant
from edgelm.targets.gguf import TARGET
task = Task("text-classification", ("card_lost", "refund", "other"))
for path in map(Path, sys.argv[1:]):
    files = (FileEntry(path.name, "0" * 64, 1),)
    variant = Variant("v", "gguf", "f16", files, {"pooling": "rank", "max_tokens": 30})
    try:
        TARGET.open(path.parent, variant, task, EngineOptions(threads=1)).close()
        print("opened")
    except BundleError:
        print("refused")
"""


@functools.cache
def written(family: str, labels=("card_lost", "refund", "other")) -> Path:
    """The directory of a tiny model with model.gguf (f16) beside its own files."""
    folder = Path(tempfile.mkdtemp(prefix=f"gguf-{family}-"))
    tiny.make_model(folder / "model", family, labels=labels)
    task = Task("text-classification", labels)
    TARGET.lower(LowerRequest(folder / "model", task, TextLimits(60), "f16", folder))
    return folder


@functools.cache
def header_bytes(family: str) -> int:
    """Bytes before the first tensor's values."""
    header = read_header(written(family) / "model.gguf")
    return min(t.offset for t in header.tensors.values())


def outcomes(paths: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("labels", [("card_lost", "refund", "other"), ("LABEL_0", "LABEL_1")])
def test_labels_are_in_the_file(labels):
    reader = GGUFReader(written("bert", labels) / "model.gguf")
    field = reader.fields["bert.classifier.output_labels"]
    assert tuple(field.contents()) == labels
    assert reader.fields["bert.pooling_type"].contents() == 4
    assert reader.fields["bert.context_length"].contents() == 64
    names = {t.name for t in reader.tensors}
    assert {"cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"} <= names


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_llama_cpp_tokenizes_as_hugging_face(family):
    """On plain texts. The engine is fed ids: literal special tokens, which llama.cpp reads as text,
    and characters unknown to a unigram vocabulary may differ there."""
    library = bindings.load()
    params = library.llama_model_default_params()
    params.vocab_only = True
    model = library.llama_model_load_from_file(str(written(family) / "model.gguf").encode(), params)
    vocab = library.llama_model_get_vocab(model)
    tokenizer = AutoTokenizer.from_pretrained(written(family) / "model")
    for text in tiny.CORPUS:
        raw = text.encode()
        buffer = (library.llama_token * (len(raw) + 16))()
        n = library.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), True, False)
        assert list(buffer[:n]) == tokenizer(text)["input_ids"], text
    library.llama_model_free(model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_header_reads_back(family):
    path = written(family) / "model.gguf"
    header = read_header(path)
    facts = read_facts(header, path)
    reader = GGUFReader(path)
    positions = 65 if "roberta" in family else 64  # those from the padding id + 1 on
    assert facts.n_embd == 32 and facts.context_length == positions
    assert {t.name: int(t.data_offset) for t in reader.tensors} == {
        name: t.offset for name, t in header.tensors.items()
    }
    last = max(header.tensors.values(), key=lambda t: t.offset)
    assert last.offset + last.n_bytes <= path.stat().st_size


def test_broken_files_are_refused(tmp_path):
    raw = (written("bert") / "model.gguf").read_bytes()
    n = header_bytes("bert")
    broken = {
        "empty": b"",
        "garbage": random.Random(0).randbytes(5000),
        "magic": b"GGML" + raw[4:],
        "version": raw[:4] + b"\x63" + raw[5:],
        "counts": raw[:8] + b"\xff" * 16 + raw[24:],
        "half": raw[: len(raw) // 2],
        "no-values": raw[:n],
        "short": raw[:-64],
        "text": b"GGUF" + b"a" * 4000,
        "token-twice": raw.replace("▁lost".encode(), "▁card".encode()),
        "nul-token": raw.replace("▁lost".encode(), b"\0" * len("▁lost".encode())),
        "zero-heads": _with_value(raw, b"bert.attention.head_count", 0),
        "layers": _with_value(raw, b"bert.block_count", 2**31),
        "experts": raw.replace(b"bert.block_count", b"bert.expert_coun"),
    }
    paths = []
    for name, content in broken.items():
        assert content != raw, name
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(content)
        with pytest.raises(BundleError):
            read_facts(read_header(paths[-1]), paths[-1])
    assert outcomes([*paths, tmp_path / "absent.gguf"]) == ["refused"] * (len(broken) + 1)
    assert outcomes([written("bert") / "model.gguf"]) == ["opened"]


def _with_value(raw: bytes, key: bytes, value: int) -> bytes:
    at = raw.index(key) + len(key) + 4
    return raw[:at] + value.to_bytes(4, "little") + raw[at + 4 :]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_no_changed_header_ends_the_process(family, tmp_path):
    raw = (written(family) / "model.gguf").read_bytes()
    rng = random.Random(1)
    paths = []
    for i in range(60):
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(header_bytes(family))] = rng.choice((0, 255, rng.randrange(256)))
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(changed)
    assert set(outcomes(paths)) == {"opened", "refused"}


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(["bert", "xlm-roberta", "modernbert"]),
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 2**31),
)
def test_the_check_raises_nothing_else_and_is_quick(family, flips, cut):
    raw = bytearray((written(family) / "model.gguf").read_bytes())
    for at, value in flips:
        raw[at % header_bytes(family)] = value
    path = written(family) / "flipped.gguf"
    path.write_bytes(raw if cut is None else raw[: cut % len(raw)])
    began = time.perf_counter()
    with contextlib.suppress(BundleError):
        read_facts(read_header(path), path)
    assert time.perf_counter() - began < 1


def test_head_files(tmp_path):
    rng = np.random.default_rng(0)
    weight, out, bias = (rng.normal(size=s).astype(np.float32) for s in ((4, 4), (2, 4), (2,)))
    head = Head(weight, None, "gelu", np.ones(4, np.float32), 1e-5, out, bias)
    path = tmp_path / "head.safetensors"
    head.save(path)
    pooled = rng.normal(size=(3, 4)).astype(np.float32)
    again = load_head(path, 4)
    assert (again(pooled) == head(pooled)).all() and again.norm_eps == 1e-5
    raw = path.read_bytes()
    head.save(path)
    assert path.read_bytes() == raw
    for broken in (b"", raw[:40], raw[:-4], b"\xff" * 64, raw.replace(b"gelu", b"gulp")):
        path.write_bytes(broken)
        with pytest.raises(BundleError):
            load_head(path, 4)
    path.write_bytes(raw)
    with pytest.raises(BundleError):
        load_head(path, 5)


def test_options_that_lower_never_gave_are_refused():
    folder = written("bert")
    task = Task("text-classification", ("card_lost", "refund", "other"))
    files = (FileEntry("model.gguf", "0" * 64, 1),)
    for options in (
        {},
        {"pooling": "max", "max_tokens": 9},
        {"pooling": "rank", "max_tokens": 0},
        {"pooling": "rank", "max_tokens": 9, "head": "other.safetensors"},
    ):
        with pytest.raises(BundleError):
            TARGET.open(folder, Variant("v", "gguf", "f16", files, options), task, EngineOptions())
    two = Task("text-classification", ("a", "b"))
    variant = Variant("v", "gguf", "f16", files, {"pooling": "rank", "max_tokens": 9})
    with pytest.raises(BundleError, match="3 outputs for 2 labels"):
        TARGET.open(folder, variant, two, EngineOptions())


def test_only_the_low_level_half_of_llama_cpp_is_imported():
    code = """
import json, os, sys
from edgelm.targets.gguf import TARGET
before = [m for m in ("llama_cpp", "torch", "gguf", "transformers") if m in sys.modules]
assert TARGET.available() is None
after = [m for m in ("llama_cpp", "diskcache", "jinja2", "torch", "gguf") if m in sys.modules]
spins = "GOMP_SPINCOUNT" in os.environ
import llama_cpp
from edgelm.targets.gguf import bindings
same = llama_cpp.llama_cpp is bindings.load() and hasattr(llama_cpp, "Llama")
print(json.dumps([before, after, spins, same]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], [], False, True]
