"""A device profile: latency and memory of variants, measured on the device that will run them.

`edgelm profile` writes it there; a search on another machine reads it. A variant is found by its
target, precision and size: weights that were trained otherwise are as large and as fast.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgelm.runtime.cores import usable_cores
from edgelm.runtime.errors import BundleError, UsageError
from edgelm.runtime.manifest import Measured, TaskKind, Variant, parse_json
from edgelm.runtime.schema import SchemaError, decode, encode

FORMAT = 1
SAME_SIZE = 0.02  # sizes that differ by no more than this share are of one structure


@dataclass(frozen=True)
class ProfiledVariant:
    """Figures of one variant."""

    task: TaskKind
    target: str
    precision: str
    measured: Measured


@dataclass(frozen=True)
class DeviceProfile:
    """Figures of one device."""

    format: int
    device: str  # what it is, for people
    variants: tuple[ProfiledVariant, ...]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(encode(self), indent=1, ensure_ascii=False) + "\n"

    def find(
        self,
        task: TaskKind,
        variant: Variant,
        batch: int,
        tokens: int | None,
        threads: int | None = None,
    ) -> Measured | None:
        """The figures of the variant of the nearest size, or None; with any number of threads where
        none is stated."""
        size = variant.size_bytes
        alike = [
            v.measured
            for v in self.variants
            if (v.task, v.target, v.precision) == (task, variant.target, variant.precision)
            and (v.measured.latency_batch, v.measured.latency_tokens) == (batch, tokens)
            and threads in (None, v.measured.threads)
            and abs(v.measured.size_bytes - size) <= SAME_SIZE * size
        ]
        return min(alike, key=lambda m: abs(m.size_bytes - size), default=None)


def make_profile(variants: Iterable[ProfiledVariant]) -> DeviceProfile:
    """The profile of this device."""
    device = f"{platform.machine()} {platform.system()}, {usable_cores()} cores"
    return DeviceProfile(FORMAT, device, tuple(variants))


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile. Raises UsageError, BundleError."""
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise UsageError(f"{path}: cannot be read: {err.strerror or err}") from err
    data = parse_json(raw, str(path))
    try:
        profile = decode(DeviceProfile, data, strict=False)
    except SchemaError as err:
        raise UsageError(
            f"{path}: not a device profile: {err}",
            hint="make one on the device: edgelm profile BUNDLE… > profile.json",
        ) from err
    if profile.format != FORMAT:
        raise BundleError(f"{path}: format {profile.format}, this edgelm reads format {FORMAT}")
    return profile
