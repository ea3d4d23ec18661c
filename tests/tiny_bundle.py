"""A bundle that is whole and cheap: a tokenizer and an ONNX file too small to be a model.

Its engine would refuse it, which is as well: tests with it are about what happens before.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

FILES = {
    "tokenizer/tokenizer.json": json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
        }
    ).encode(),
    "tokenizer/chat_template.jinja": b"{{ messages }}",
    # ir_version, opset, a graph with a name and nothing in it, and a long text for people
    "variants/onnx-fp32/model.onnx": b"\x08\x08\x42\x02\x10\x12\x3a\x03\x12\x01g\x32\xb8\x17"
    + b"d" * 3000,
    "variants/gguf-f16/model.gguf": b"GGUF" + random.Random(2).randbytes(3000),
    "variants/gguf-f16/head.safetensors": random.Random(3).randbytes(3004),
    "card.md": b"# card\n",
    "report.html": b"<html></html>",
}


def entry(path: str, raw: bytes) -> dict[str, Any]:
    """A manifest's entry of a file."""
    return {"path": path, "sha256": hashlib.sha256(raw).hexdigest(), "size_bytes": len(raw)}


def make_bundle(root: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write a bundle of those files."""
    files = FILES if files is None else files
    variants = sorted({path.split("/")[1] for path in files if path.startswith("variants/")})
    manifest = {
        "format": 1,
        "name": "tiny",
        "version": "1",
        "release": 1,
        "task": {"kind": "text-classification", "labels": ["a", "b"]},
        "text": {"max_tokens": 16},
        "files": [entry(p, raw) for p, raw in files.items() if not p.startswith("variants/")],
        "variants": [
            {
                "name": name,
                "target": name.partition("-")[0],
                "precision": name.partition("-")[2],
                "files": [
                    entry(p, raw) for p, raw in files.items() if p.startswith(f"variants/{name}/")
                ],
            }
            for name in variants
        ],
    }
    for path, raw in {**files, "edgelm.json": json.dumps(manifest, indent=1).encode()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(raw)
    return root
