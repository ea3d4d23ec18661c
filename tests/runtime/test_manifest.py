"""Reading edgelm.json: what is refused, and with which error."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelm.runtime.errors import BundleError, BundleNotFound, BundleVersionError
from edgelm.runtime.manifest import (
    FILE_NAME,
    MAX_DEPTH,
    MAX_SIZE_BYTES,
    FileEntry,
    GoldenText,
    Manifest,
    Measured,
    Parity,
    Task,
    TextLimits,
    Variant,
    read_manifest,
)

DIGEST = "0123456789abcdef" * 4
MANIFEST = Manifest(
    format=1,
    name="café",
    version="1.2.0",
    release=3,
    task=Task("text-classification", ("a", "我"), threshold=0.25),
    text=TextLimits(64, 1, True),
    files=(FileEntry("tokenizer/tokenizer.json", DIGEST, 12),),
    variants=(
        Variant(
            "onnx-fp32",
            "onnx",
            "fp32",
            (FileEntry("variants/onnx-fp32/model.onnx", DIGEST, 34),),
            options={"deep": [1, {"x": None}]},
            engine={"onnxruntime": "1.22"},
            parity=Parity(3, 1e-6, 1.0, 0.0),
            metrics={"accuracy": 0.5},
            measured=Measured(34, 1.5, 2.5, 100.0, None, 2),
            golden=((0.5, -1.0),),
        ),
    ),
    reference={"accuracy": 0.5},
    golden=(GoldenText("hi"),),
    provenance={"packages": {"torch": "2"}},
)
PLAIN: dict[str, Any] = json.loads(MANIFEST.to_json())


def write(folder: Path, data: object) -> Path:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    (folder / FILE_NAME).write_bytes(raw)
    return folder


def changed(path: str, value: object) -> dict[str, Any]:
    """PLAIN with the value at `variants.0.name`-like `path` replaced."""
    data = copy.deepcopy(PLAIN)
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    return data


def test_round_trip_and_canonical_text(tmp_path: Path) -> None:
    read = read_manifest(write(tmp_path, MANIFEST.to_json().encode()))
    assert read == MANIFEST
    assert read.to_json() == MANIFEST.to_json()
    assert read.variants[0].size_bytes == 34


def test_keys_of_a_newer_minor_version_are_let_through(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, changed("task.added_later", 1))) == MANIFEST


def test_missing(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "no such bundle"), (tmp_path, "not a bundle")):
        with pytest.raises(BundleNotFound, match=says):
            read_manifest(path)


@pytest.mark.parametrize("number", [0, 2, 99])
def test_another_format(tmp_path: Path, number: int) -> None:
    # what else a later format holds is nothing this version may complain of
    with pytest.raises(BundleVersionError, match=f"format {number}, this edgelm reads format 1"):
        read_manifest(write(tmp_path, {"format": number, "new": []}))


FILES = "variants.0.files"
BAD_NAMES = (
    "/etc/passwd",
    "../x",
    "a/../b",
    "..",
    ".",
    "",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "C:/x",
    "a\0b",
    "tokenizer/tokenizer.json",  # stands twice then
)
BAD = [
    (b"", "not valid JSON"),
    (b"\xff\xfe{}", "not valid JSON"),
    (b"[1]", "states no format number"),
    (b'{"format": "1"}', "states no format number"),
    (b'{"format": 1, "format": 1}', "'format' stands twice"),
    (b'{"format": 1, "a": NaN}', "NaN is not JSON"),
    (b'{"format": 1, "a": -Infinity}', "-Infinity is not JSON"),
    (b'{"format": 1, "a": 1e999}', "1e999 is out of range"),
    (b'{"format": 1, "a": ' + b"[" * 100_000, f"nested deeper than {MAX_DEPTH}"),
    (b'{"format": 1, "a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    (b" " * (MAX_SIZE_BYTES + 1), "larger than"),
    ({"format": 1}, "name: missing"),
    (changed("format", True), "format"),
    (changed("task.kind", "poetry"), "task.kind: 'poetry' is none of"),
    (changed("text.max_tokens", "64"), "text.max_tokens: '64' is not a whole number"),
    (changed("text.max_tokens", -1), "text: -1 tokens"),
    (changed("text.max_tokens", 10**30), "tokens"),
    (changed("text.pad_id", -1), "padded with -1"),
    (changed("task.labels", []), "at least two are needed"),
    (changed("task.labels", ["a", "a"]), "at least two are needed, each another"),
    (changed("task.threshold", 9), "task.threshold: 9.0"),
    (changed("variants", []), "at least one variant"),
    *((changed("variants.0.name", n), "not an allowed variant name")
      for n in ("", "A", "-a", "../x", "a b", "a\n")),
    (changed("variants.0.golden", [[0.5, 1], [0.5]]), "onnx-fp32: golden"),
    (changed("golden", []), "onnx-fp32: golden"),
    (changed("files", []), "it lists no tokenizer/tokenizer.json"),
    (changed("variants", PLAIN["variants"] * 2), "a name of its own"),
    *((changed(FILES, [{"path": p, "sha256": DIGEST, "size_bytes": 1}]), "file name")
      for p in BAD_NAMES),
    *((changed(FILES, [{"path": "a", "sha256": d, "size_bytes": 1}]), "not a sha256 digest")
      for d in ("", DIGEST[1:], DIGEST.upper(), "g" * 64)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "says"), BAD, ids=range(len(BAD)))
def test_bad_manifests_are_refused(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(BundleError) as err:
        read_manifest(write(tmp_path, data))
    assert type(err.value) is BundleError
    assert says in err.value.message
    assert FILE_NAME in err.value.message


def test_depth_counts_brackets_outside_of_strings_only(tmp_path: Path) -> None:
    text = '[{"\\"' * 50
    assert read_manifest(write(tmp_path, changed("name", text))).name == text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MANIFEST_BYTES = MANIFEST.to_json().encode()
PATHS = [
    *PLAIN,
    "task.labels",
    "text.max_tokens",
    "files.0.path",
    "variants.0.options",
    "variants.0.golden",
    "variants.0.parity.n",
]


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """The manifest with some of its bytes changed, cut out or put in."""
    start = draw(st.integers(0, len(MANIFEST_BYTES)))
    stop = start + draw(st.integers(0, 40))
    middle = draw(st.binary(max_size=8) | st.sampled_from([b"{", b"[", b'"', b",", b"\\", b"-1"]))
    return MANIFEST_BYTES[:start] + middle + MANIFEST_BYTES[stop:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.binary(max_size=200)
    | spoiled()
    | JSON_VALUES.map(lambda v: json.dumps(v).encode())
    | st.builds(
        lambda p, v: json.dumps(changed(p, v)).encode(), st.sampled_from(PATHS), JSON_VALUES
    )
)
def test_no_bytes_raise_anything_but_a_bundle_error(tmp_path: Path, raw: bytes) -> None:
    with contextlib.suppress(BundleError):
        read_manifest(write(tmp_path, raw))
