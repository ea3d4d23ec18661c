"""The manifest `edgelm.json`: what a bundle holds and what was measured of it.

docs/bundle.md describes each key. Reading is guarded: size, depth, duplicate keys and NaN are
refused before anything else looks at the values.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from edgelm.runtime.errors import BundleError, BundleNotFound, BundleVersionError
from edgelm.runtime.schema import SchemaError, decode, encode

FORMAT = 1
FILE_NAME = "edgelm.json"
MAX_SIZE_BYTES = 4 * 2**20
MAX_TOKENIZER_BYTES = 128 * 2**20
MAX_DEPTH = 32
MAX_CONTAINERS = 200_000  # lists and mappings of one text: empty ones take 60 bytes for 2
TOKENIZER_FILE = "tokenizer/tokenizer.json"
TEMPLATE_FILE = "tokenizer/chat_template.jinja"  # of chat models
# Kinds of files that a bundle may hold. None of them is run or unpickled by who reads it.
KINDS = frozenset(".data .gguf .html .jinja .json .md .model .onnx .safetensors .txt .yaml".split())
# a string without an end goes to the text's end, so that no place is looked at twice
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

TaskKind = Literal["text-classification", "feature-extraction", "text-generation"]
Problem = Literal["single_label", "multi_label"]
Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class Task:
    """What the model answers. Classification uses labels, problem, threshold and pair; embeddings
    pooling, normalize and dimensions; generation the rest."""

    kind: TaskKind
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label"
    threshold: float = 0.5  # multi-label: a label is given when its probability is at least this
    pair: bool = False
    pooling: Pooling = "mean"
    normalize: bool = False
    dimensions: int | None = None
    end_ids: tuple[int, ...] = ()  # tokens that end an answer
    chat: bool = False  # whether tokenizer/chat_template.jinja renders messages
    special_tokens: dict[str, str] = field(default_factory=dict[str, str])  # that it may name


@dataclass(frozen=True)
class TextLimits:
    """How texts become tokens."""

    max_tokens: int  # special tokens included; for generation prompt and answer together
    pad_id: int = 0
    type_ids: bool = False  # whether the model tells the two texts of a pair apart by type ids


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle, by its path relative to the bundle's root."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Parity:
    """How far a variant is from the Hugging Face reference, over the evaluation texts."""

    n: int
    max_abs_diff: float  # largest difference of a logit, or of a vector's component
    agreement: float | None = None  # share of equal labels (multi-label: equal label sets)
    kl_divergence: float | None = None  # mean, in nats
    min_cosine: float | None = None  # embeddings
    mean_cosine: float | None = None
    # generation; there `n` counts tokens, agreement is the share of equal likeliest tokens
    kl_p999: float | None = None  # 99.9th percentile of the KL divergence of a token, in nats
    perplexity_ratio: float | None = None  # the variant's over the reference's
    same_answers: float | None = None  # share of greedy answers that are equal to their end
    first_divergence: float | None = None  # median token at which the other answers part
    gain_kept: float | None = None  # share of the fine-tuning's fall in loss that is left


@dataclass(frozen=True)
class Measured:
    """Figures measured on the machine that compiled the bundle."""

    size_bytes: int
    latency_ms_p50: float | None = None  # of one call
    latency_ms_p95: float | None = None
    texts_per_s: float | None = None  # the evaluation texts, length-sorted batches
    memory_bytes: int | None = None
    threads: int | None = None
    first_token_ms: float | None = None  # generation: from a prompt of median length
    prompt_tokens_per_s: float | None = None
    answer_tokens_per_s: float | None = None  # one answer at a time
    latency_batch: int = 1  # texts in that call
    latency_tokens: int | None = None  # tokens of each, about; None: a text of median length


@dataclass(frozen=True)
class Variant:
    """One lowered form of the model."""

    name: str
    target: str
    precision: str
    files: tuple[FileEntry, ...]
    options: dict[str, Any] = field(default_factory=dict[str, Any])  # the target's own
    engine: dict[str, str] = field(default_factory=dict[str, str])  # package -> lowest version
    parity: Parity | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    measured: Measured | None = None
    golden: tuple[tuple[float, ...], ...] = ()  # this variant's own outputs on Manifest.golden
    types: dict[str, str] = field(default_factory=dict[str, str])  # tensor -> type, where chosen

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, tokenizer left out."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True)
class GoldenText:
    """A text whose answer is re-checked on the device."""

    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole of `edgelm.json`."""

    format: int
    name: str
    version: str
    release: int
    task: Task
    text: TextLimits
    files: tuple[FileEntry, ...]  # everything outside variants/: tokenizer, report, card, recipe
    variants: tuple[Variant, ...]
    reference: dict[str, float] = field(default_factory=dict[str, float])
    # metrics of the model before it was pruned or distilled; the reference is the smaller one
    original: dict[str, float] = field(default_factory=dict[str, float])
    golden: tuple[GoldenText, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def all_files(self) -> Iterator[FileEntry]:
        """Every file but the manifest itself, and a signature."""
        yield from self.files
        for variant in self.variants:
            yield from variant.files

    def to_json(self) -> str:
        """Canonical text: sorted keys, so equal manifests are equal bytes."""
        return json.dumps(encode(self), ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def read_manifest(root: Path) -> Manifest:
    """Read and check `edgelm.json`. Raises BundleNotFound, BundleVersionError, BundleError."""
    path = root / FILE_NAME
    if not root.exists():
        raise BundleNotFound(f"{root}: no such bundle")
    if not path.is_file():
        raise BundleNotFound(
            f"{root}: not a bundle, it has no {FILE_NAME}",
            hint="a bundle is the directory that `edgelm compile … -o DIR` wrote",
        )
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SIZE_BYTES + 1)
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror or err}") from err
    if len(raw) > MAX_SIZE_BYTES:
        raise BundleError(f"{path}: larger than {MAX_SIZE_BYTES} bytes")
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """The manifest whose bytes these are; `path` is for messages.

    Raises BundleVersionError, BundleError."""
    data = parse_json(raw, str(path))
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise BundleError(f"{path}: not a manifest, it states no format number")
    if data["format"] != FORMAT:
        raise BundleVersionError(
            f"{path}: format {data['format']}, this edgelm reads format {FORMAT}",
            hint="use the edgelm version that compiled the bundle, or compile it again",
        )
    try:
        manifest = decode(Manifest, data, strict=False)
    except SchemaError as err:
        raise BundleError(f"{path}: {err}") from err
    _check(manifest, path)
    return manifest


def parse_json(raw: bytes, where: str) -> Any:
    """JSON with duplicate keys, NaN, infinity and deep nesting refused. Raises BundleError."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits[:40]} is out of range")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(k for k, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {twice!r} stands twice")
        return found

    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        return json.loads(
            text, parse_constant=refuse_constant, parse_float=finite, object_pairs_hook=unique
        )
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{where}: not valid JSON: {err}") from err


def _check_depth(text: str) -> None:
    depth = n = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        char = found[0]
        if char in "[{":
            depth, n = depth + 1, n + 1
            if depth > MAX_DEPTH or n > MAX_CONTAINERS:
                raise ValueError(f"nested deeper than {MAX_DEPTH}, or over {MAX_CONTAINERS} lists")
        elif char in "]}":
            depth -= 1


def _check(manifest: Manifest, path: Path) -> None:
    names = [v.name for v in manifest.variants]
    if not names or len(set(names)) != len(names):
        raise BundleError(f"{path}: it needs at least one variant, each with a name of its own")
    for variant in manifest.variants:
        if not _VARIANT_NAME.fullmatch(variant.name):
            raise BundleError(f"{path}: {variant.name!r} is not an allowed variant name")
        widths = {len(row) for row in variant.golden}
        if len(widths) > 1 or len(variant.golden) not in (0, len(manifest.golden)):
            raise BundleError(
                f"{path}: {variant.name}: golden: one row is needed for each golden text, all of "
                "one length"
            )
    task, text = manifest.task, manifest.text
    if not 4 <= text.max_tokens <= 65536 or not 0 <= text.pad_id < 2**31:
        raise BundleError(f"{path}: text: {text.max_tokens} tokens, padded with {text.pad_id}")
    if task.kind == "text-classification" and len(set(task.labels)) < max(2, len(task.labels)):
        raise BundleError(f"{path}: task.labels: at least two are needed, each another")
    if not 0 < task.threshold < 1:
        raise BundleError(f"{path}: task.threshold: {task.threshold} is not between 0 and 1")
    _check_files(manifest, path)


def _check_files(manifest: Manifest, path: Path) -> None:
    seen: set[str] = set()
    for entry in manifest.all_files():
        odd_part = any(part in ("", ".", "..") for part in entry.path.split("/"))
        if odd_part or any(c in entry.path for c in "\\:\0") or entry.path in seen:
            raise BundleError(
                f"{path}: {entry.path!r} is not an allowed file name, or stands twice"
            )
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            raise BundleError(f"{path}: {entry.path}: {entry.sha256!r} is not a sha256 digest")
        if PurePosixPath(entry.path).suffix not in KINDS:
            raise BundleError(f"{path}: {entry.path!r}: files of this kind are not in bundles")
        seen.add(entry.path)
    for entry in manifest.files:
        if entry.size_bytes > MAX_TOKENIZER_BYTES:
            raise BundleError(f"{path}: {entry.path}: {entry.size_bytes} bytes are too many")
    if TOKENIZER_FILE not in {entry.path for entry in manifest.files}:
        raise BundleError(f"{path}: files: it lists no {TOKENIZER_FILE}")
