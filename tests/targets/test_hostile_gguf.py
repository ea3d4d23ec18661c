"""GGUF files made to hurt: each is refused by the look before, so llama.cpp never sees it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.facts import read_facts

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_FORMS = {0: "B", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


class Gguf:
    """A small good decoder's file, in parts that a test spoils."""

    def __init__(self) -> None:
        self.magic, self.version = b"GGUF", 3
        self.n_keys: int | None = None
        self.n_tensors: int | None = None
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(5))]
        self.keys: list[tuple[Any, int, bytes]] = [
            ("general.architecture", STRING, text("llama")),
            ("llama.context_length", U32, struct.pack("<I", 64)),
            ("llama.embedding_length", U32, struct.pack("<I", 32)),
            ("llama.block_count", U32, struct.pack("<I", 1)),
            ("llama.feed_forward_length", U32, struct.pack("<I", 64)),
            ("llama.attention.head_count", U32, struct.pack("<I", 4)),
            ("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
            ("general.alignment", U32, struct.pack("<I", 32)),
            ("tokenizer.ggml.model", STRING, text("llama")),
            ("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
            ("tokenizer.ggml.scores", ARRAY, numbers(F32, [0.0] * 8)),
            ("tokenizer.ggml.token_type", ARRAY, numbers(I32, [1] * 8)),
            ("tokenizer.chat_template", STRING, text("{{ messages }}")),
        ]
        # name, dims as the file has them, type, offset
        self.tensors: list[list[Any]] = [
            ["token_embd.weight", [32, 8], 0, 0],
            ["output_norm.weight", [32], 0, 1024],
        ]
        self.data = bytes(1024 + 128)

    def set(self, name: str, kind: int, raw: bytes) -> None:
        self.keys = [k for k in self.keys if k[0] != name] + [(name, kind, raw)]

    def bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for name, kind, raw in self.keys:
            out += text(name) + struct.pack("<I", kind) + raw
        for name, dims, kind, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            out += struct.pack("<IQ", kind, offset)
        return out + bytes(-len(out) % 32) + self.data


def strings(values: list[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def numbers(kind: int, values: list[Any]) -> bytes:
    form = _FORMS[kind]
    return struct.pack("<IQ", kind, len(values)) + struct.pack(f"<{len(values)}{form}", *values)


def key(name: str, kind: int, value: Any) -> Callable[[Gguf], None]:
    raw = text(value) if kind == STRING else value if kind == ARRAY else None
    if raw is None:
        raw = value if isinstance(value, bytes) else struct.pack("<" + _FORMS[kind], value)
    return lambda g: g.set(name, kind, raw)


def put(**values: Any) -> Callable[[Gguf], None]:
    def change(g: Gguf) -> None:
        for name, value in values.items():
            setattr(g, name, value)

    return change


def tensor(i: int, place: int, value: Any) -> Callable[[Gguf], None]:
    def change(g: Gguf) -> None:
        g.tensors[i][place] = value

    return change


def again(g: Gguf) -> None:
    g.keys.append(g.keys[1])


def drop(name: str) -> Callable[[Gguf], None]:
    def change(g: Gguf) -> None:
        g.keys = [k for k in g.keys if k[0] != name]

    return change


def token(value: str) -> Callable[[Gguf], None]:
    values = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(4)), value]
    return lambda g: g.set("tokenizer.ggml.tokens", ARRAY, strings(values))


NAME, DIMS, TYPE, OFFSET = range(4)
CHANGES: dict[str, Callable[[Gguf], None]] = {
    "magic": put(magic=b"GGML"),
    "magic-big-endian": put(magic=b"FUGG"),
    "version-1": put(version=1),
    "version-4": put(version=4),
    "version-big-endian": put(version=3 << 24),
    # CVE-2024-21802, -21825, -21836, -23496, -23605: counts, lengths, dims
    "keys-2^64": put(n_keys=2**64 - 1),
    "keys-65537": put(n_keys=65_537),
    "keys-one-more": put(n_keys=14),
    "tensors-2^64": put(n_tensors=2**64 - 1),
    "tensors-2^31": put(n_tensors=2**31),
    "tensors-one-more": put(n_tensors=3),
    "key-name-empty": key("", U32, 1),
    "key-name-too-long": key("k" * 65_536, U32, 1),
    "key-name-not-utf8": lambda g: g.keys.append((b"\xff\xfe", U32, bytes(4))),
    "key-twice": again,
    "key-type-unknown": lambda g: g.set("general.name", 13, bytes(8)),
    "string-2^64": lambda g: g.set("general.name", STRING, struct.pack("<Q", 2**64 - 1)),
    "string-2^63": lambda g: g.set("general.name", STRING, struct.pack("<Q", 2**63)),
    "string-65-MiB": lambda g: g.set("general.name", STRING, struct.pack("<Q", 65 << 20)),
    "template-too-long": key("tokenizer.chat_template", STRING, "x" * (256 * 1024 + 1)),
    # gguf-py before 0.20: an endless loop
    "array-2^63": lambda g: g.set("general.tags", ARRAY, struct.pack("<IQ", STRING, 2**63)),
    "array-2^62-numbers": lambda g: g.set("general.tags", ARRAY, struct.pack("<IQ", U64, 2**62)),
    "array-of-nothing-2^64": lambda g: g.set("x.y", ARRAY, struct.pack("<IQ", 0, 2**64 - 1)),
    "array-of-arrays": lambda g: g.set("general.tags", ARRAY, struct.pack("<IQ", ARRAY, 1)),
    "array-of-unknown": lambda g: g.set("general.tags", ARRAY, struct.pack("<IQ", 99, 1)),
    "array-last-string-long": lambda g: g.set(
        "general.tags", ARRAY, struct.pack("<IQ", STRING, 1) + struct.pack("<Q", 2**40)
    ),
    # alignment
    "alignment-0": key("general.alignment", U32, 0),
    "alignment-24": key("general.alignment", U32, 24),
    "alignment-2^31": key("general.alignment", U32, 2**31),
    "alignment-text": key("general.alignment", STRING, "32"),
    "alignment-64-bits": key("general.alignment", U64, 32),
    # CVE-2026-33298, -2025-53630, -2026-27940: products that wrap; CVE-2026-7482: past the end
    "dims-none": tensor(0, DIMS, []),
    "dims-five": tensor(0, DIMS, [32, 8, 1, 1, 1]),
    "dims-zero": tensor(0, DIMS, [32, 0]),
    "dims-2^63": tensor(0, DIMS, [2**63, 2]),
    "dims-product-wraps": tensor(0, DIMS, [2**32, 2**32]),
    "dims-product-wraps-to-little": tensor(0, DIMS, [2**62, 4, 2, 2]),
    "dims-no-whole-block": lambda g: g.tensors.__setitem__(0, ["token_embd.weight", [33], 2, 0]),
    "type-unknown": tensor(0, TYPE, 200),
    "type-removed": tensor(0, TYPE, 4),
    "type-integers": tensor(0, TYPE, 26),
    "offset-past-the-end": tensor(1, OFFSET, 4096),
    "offset-2^63": tensor(1, OFFSET, 2**63),
    "offset-wraps": tensor(1, OFFSET, 2**64 - 32),
    "offset-not-aligned": tensor(1, OFFSET, 1028),
    "offset-overlaps": tensor(1, OFFSET, 0),
    "data-cut": put(data=bytes(1024)),
    "data-none": put(data=b""),
    "tensor-twice": tensor(1, NAME, "token_embd.weight"),
    "tensor-name-empty": tensor(1, NAME, ""),
    "tensor-name-64": tensor(1, NAME, "t" * 64),
    "tensor-name-not-utf8": tensor(1, NAME, b"\xc3\x28"),
    "tensor-name-2^40": lambda g: g.tensors.__setitem__(1, [b"", [32], 0, 1024]),
    # CVE-2025-49847, -52566 and the vocabulary bugs of 2026
    "token-byte-negative": token("<0x-1>"),
    "token-byte-no-digits": token("<0xZZ>"),
    "token-byte-plus": token("<0x+1>"),
    "token-twice": token("<s>"),
    "token-empty": token(""),
    "token-nul": token("\0"),
    "scores-too-few": key("tokenizer.ggml.scores", ARRAY, numbers(F32, [0.0])),
    "scores-no-list": key("tokenizer.ggml.scores", F32, 0.0),
    "types-too-many": key("tokenizer.ggml.token_type", ARRAY, numbers(I32, [1] * 9)),
    # the graph
    "graph-unknown": key("general.architecture", STRING, "mamba"),
    "graph-path": key("general.architecture", STRING, "../llama"),
    "graph-none": drop("general.architecture"),
    "layers-0": key("llama.block_count", U32, 0),
    "layers-513": key("llama.block_count", U32, 513),
    "layers-text": key("llama.block_count", STRING, "1"),
    "heads-0": key("llama.attention.head_count", U32, 0),
    "heads-uneven": key("llama.attention.head_count", U32, 5),
    "context-2^31": key("llama.context_length", U32, 2**31),
    "width-of-another": key("llama.embedding_length", U32, 64),
    "epsilon-nan": key("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
    "split-alone": key("split.count", U32, 2),
}


def look(path: Path) -> None:
    read_facts(read_header(path), path)


def test_the_good_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(Gguf().bytes())
    look(path)


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    made = Gguf()
    CHANGES[name](made)
    raw = made.bytes()
    assert raw != Gguf().bytes()
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"hostile\.gguf"):
        look(path)
