"""Versions: is the installed engine new enough for a variant's files, and is it a safe one?"""

from __future__ import annotations

import re

from edgelm.runtime.errors import BundleError, TargetUnavailable
from edgelm.runtime.manifest import Variant

# The oldest versions without known holes that a file can reach, and what is older's fault. No
# published advisory is no proof of a safe version: engines repair parsers without saying so.
SECURITY_FLOORS = {
    "onnxruntime": ("1.28.1", "files could make it read and write outside its memory"),
    "llama-cpp-python": ("0.3.36", "GGUF files could make llama.cpp write outside its memory"),
    "jinja2": ("3.1.6", "chat templates could leave the sandbox"),
    "onnx": ("1.21", "files could name weights outside their folder (CVE-2026-27489)"),
    "torch": ("2.10", "checkpoints could run code (CVE-2026-24747)"),
    "transformers": ("5.3", "a model's config.json could run code (CVE-2026-4372)"),
}

# Packages that bring the same engine under another name.
_ALSO = {"onnxruntime": ("onnxruntime-gpu",)}
_NUMBERS = re.compile(r"\d{1,9}(\.\d{1,9})*")


def check_engine(variant: Variant) -> None:
    """Raise TargetUnavailable where an engine is older than the variant states.

    BundleError where the manifest's floor is none. An engine without package metadata passes:
    whether it can be loaded is the target's to say."""
    for package, floor in variant.engine.items():
        needed = _NUMBERS.fullmatch(floor.removeprefix(">="))
        if not floor.startswith(">=") or needed is None:
            raise BundleError(
                f"variant {variant.name!r}: engine: {package} {floor!r} is not like '>=1.2.3'"
            )
        name, version = installed(package)
        if is_older(version, needed.group()):
            raise TargetUnavailable(
                f"variant {variant.name!r} needs {package} {floor}, {name} {version} is installed",
                hint=f'update it with: pip install -U "{name}{floor}"',
            )


def is_older(version: str, floor: str) -> bool:
    """Whether `1.22.0rc1+cu12` is below `1.28.1`; what is no version is not."""
    found = _NUMBERS.match(version)
    return found is not None and _numbers(found.group()) < _numbers(floor)


def installed(package: str) -> tuple[str, str]:
    """The distribution that brings the engine, and its version; empty where there is none."""
    for name in (package, *_ALSO.get(package, ())):
        version = version_of(name)
        if version:
            return name, version
    return package, ""


def version_of(distribution: str) -> str:
    """Of the distribution by that very name; empty where it is not installed."""
    from importlib import metadata  # 20 ms, which `load` has while a bundle's files are read

    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """1.20.0 -> (1, 20): trailing zeros say nothing."""
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
