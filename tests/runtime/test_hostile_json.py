"""Manifests, heads, tokenizers and templates made to hurt: a typed error each, and soon."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import FILES, make_bundle

from edgelm.runtime.errors import BundleError, EdgelmError
from edgelm.runtime.generate.template import ChatTemplate
from edgelm.runtime.manifest import MAX_SIZE_BYTES, TextLimits, parse_json, read_manifest
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.targets.gguf.head import load_head

FILLED = MAX_SIZE_BYTES // 2 - 8
MANIFESTS = {
    "deep": b"[" * 100_000,
    "deep-objects": b'{"a":' * 100_000,
    "wide": b"[" + b"[]," * (MAX_SIZE_BYTES // 3 - 8) + b"[]]",
    "quotes": b'{"' + b'\\"' * FILLED,  # a string without an end, with many that could begin one
    "backslashes": b'{"' + b"\\\\" * FILLED,
    "too-large": b" " * (MAX_SIZE_BYTES + 1),
    "twice": b'{"format": 1, "format": 1}',
    "nan": b'{"format": NaN}',
    "infinity": b'{"format": 1e999}',
    "long-number": b'{"format": ' + b"9" * 100_000 + b"}",
    "not-utf8": b'{"format": "\xff"}',
    "utf16": '{"format": 1}'.encode("utf-16"),
    "nothing": b"",
    "list": b"[1]",
    "format-true": b'{"format": true}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests(tmp_path: Path, name: str) -> None:
    (tmp_path / "edgelm.json").write_bytes(MANIFESTS[name])
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name",
    "model.bin model.pt model.pth model.ckpt model.pkl model.joblib model.npy setup.py lib.so "
    "lib.dll lib.dylib run.sh model.engine model.ort model.tar model.zip model".split(),
)
def test_kinds_of_files_that_bundles_do_not_have(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path, {**FILES, f"variants/onnx-fp32/{name}": b"x"})
    with pytest.raises(BundleError, match="kind"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", ["../x.json", "/x.json", "a/../x.json", "a//x.json", "a\\x.json"])
def test_paths_out_of_the_bundle(tmp_path: Path, path: str) -> None:
    make_bundle(tmp_path)
    manifest = json.loads((tmp_path / "edgelm.json").read_text())
    manifest["files"].append({"path": path, "sha256": "0" * 64, "size_bytes": 1})
    (tmp_path / "edgelm.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="file name"):
        read_manifest(tmp_path)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_depth_is_counted_as_json_has_it(value: Any) -> None:
    """Brackets in strings, escaped quotes."""
    raw = json.dumps(value)
    assert parse_json(raw.encode(), "x") == value
    nested = "[" * 40 + raw + "]" * 40
    with pytest.raises(BundleError, match="deeper"):
        parse_json(nested.encode(), "x")


# -- safetensors --


def head(header: Any = None, body: bytes = bytes(48), n: int | None = None) -> bytes:
    """Of two vector components: dense (2, 2), out (2, 2), bias (2,)."""
    raw = header if isinstance(header, bytes) else json.dumps(header or entries()).encode()
    return struct.pack("<Q", len(raw) if n is None else n) + raw + body


def entries(**changed: Any) -> dict[str, Any]:
    def entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
        return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}

    return {
        "__metadata__": {"activation": "tanh", "norm_eps": "1e-5"},
        "dense.weight": entry([2, 2], 0, 16),
        "out.weight": entry([2, 2], 16, 32),
        "out.bias": entry([2], 32, 40),
        "dense.bias": entry([2], 40, 48),
        **changed,
    }


def bias(**changed: Any) -> bytes:
    return head(entries(**{"dense.bias": {**entries()["dense.bias"], **changed}}))


HEADS = {
    "nothing": b"",
    "short": b"\x01\x00",
    "header-longer-than-the-file": head(n=2**20),
    "header-2^63": head(n=2**63),
    "header-2^64": head(n=2**64 - 1),
    "header-0": head(n=0),
    "header-cut": head(n=20),
    "no-json": head(b"[" * 1000),
    "key-twice": head(json.dumps(entries()).replace("dense.bias", "out.bias").encode()),
    "list": head(b"[1, 2]"),
    "no-metadata": head({k: v for k, v in entries().items() if k != "__metadata__"}),
    "activation-unknown": head(entries(__metadata__={"activation": "eval", "norm_eps": "1"})),
    "activation-a-list": head(entries(__metadata__={"activation": [], "norm_eps": "1"})),
    "hole": head(body=bytes(52)),
    "past-the-end": bias(data_offsets=[40, 52]),
    "negative": bias(data_offsets=[-8, 0]),
    "backwards": bias(data_offsets=[48, 40]),
    "overlap": bias(data_offsets=[32, 40]),
    "offsets-of-floats": bias(data_offsets=[40.0, 48.0]),
    "offsets-2^70": bias(data_offsets=[40, 2**70]),
    "offsets-three": bias(data_offsets=[40, 44, 48]),
    "offsets-true": bias(data_offsets=[True, 48]),
    "shape-wraps": bias(shape=[2**32, 2**32]),
    "shape-minus-one": bias(shape=[-1]),
    "shape-of-another": bias(shape=[1, 2]),
    "shape-text": bias(shape="2"),
    "dtype-pickle": bias(dtype="O"),
    "dtype-f64": bias(dtype="F64"),
}


def test_a_good_head_passes(tmp_path: Path) -> None:
    (tmp_path / "head").write_bytes(head())
    assert load_head(tmp_path / "head", 2).activation == "tanh"


@pytest.mark.parametrize("name", HEADS)
def test_hostile_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / "head").write_bytes(HEADS[name])
    with pytest.raises(BundleError):
        load_head(tmp_path / "head", 2)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_heads_raise_nothing_else(tmp_path_factory: Any, flips: Any) -> None:
    raw = bytearray(head())
    for at, value in flips:
        raw[at % len(raw)] = value
    path = tmp_path_factory.getbasetemp() / "mutated-head"
    path.write_bytes(raw)
    with contextlib.suppress(BundleError):
        load_head(path, 2)


# -- tokenizers and templates --

TOKENIZERS = {
    "nothing": "",
    "list": "[]",
    "deep": "[" * 10_000,
    "no-model": "{}",
    "model-unknown": '{"model": {"type": "Pickle"}}',
    "vocab-a-list": '{"model": {"type": "WordLevel", "vocab": [], "unk_token": "a"}}',
    "id-negative": '{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}',
    "id-2^40": '{"model": {"type": "WordLevel", "vocab": {"a": 1099511627776}, "unk_token": "a"}}',
    "merge-of-nothing": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}',
    "charsmap": '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, '
    '"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
    "regex": '{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, '
    '"behavior": "Isolated", "invert": false}, '
    '"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_tokenizers(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZERS[name])
    with pytest.raises(BundleError, match="not a tokenizer"):
        Tokenizer(tmp_path, TextLimits(16))


# CVE-2024-34359 and its kin: templates that reach for Python
TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ range.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['sys'] }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * [1] }}",
    "{{ 10 ** 1000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "{% set _ = messages.append(1) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% for x in",
    "{{ (" * 2000,
    "x" * 300_000,
]


@pytest.mark.parametrize("source", TEMPLATES, ids=range(len(TEMPLATES)))
def test_hostile_templates(source: str) -> None:
    with pytest.raises(EdgelmError):
        ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("source", ["{{ ''|attr('__class__') }}", "{{ strftime_now.__globals__ }}"])
def test_templates_that_reach_nothing(source: str) -> None:
    assert ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}]) == ""


def test_harmless_products_and_formats() -> None:
    source = "{{ '-' * 3 }}{{ 2 ** 3 }}{{ '%02d' % 7 }}{{ '{:>3}'.format(1) }}{{ 'x'.ljust(2) }}|"
    source += "{{ 'ab'.replace('a', 'c') }}{{ ', '.join(['a', 'b']) }}"
    assert ChatTemplate(source, {}).render([]) == "---807  1x |cba, b"
