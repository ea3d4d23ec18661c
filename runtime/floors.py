"""Is the installed engine new enough for a variant's files?"""

from __future__ import annotations

import re

from edgelm.runtime.errors import BundleError, TargetUnavailable
from edgelm.runtime.manifest import Variant

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
        name, version = _installed(package)
        found = _NUMBERS.match(version)
        if found is not None and _numbers(found.group()) < _numbers(needed.group()):
            raise TargetUnavailable(
                f"variant {variant.name!r} needs {package} {floor}, {name} {version} is installed",
                hint=f'update it with: pip install -U "{name}{floor}"',
            )


def _installed(package: str) -> tuple[str, str]:
    """The distribution that brings the engine, and its version; empty where there is none."""
    from importlib import metadata  # 20 ms, which `load` has while a bundle's files are read

    for name in (package, *_ALSO.get(package, ())):
        try:
            return name, metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return package, ""


def _numbers(version: str) -> tuple[int, ...]:
    """1.20.0 -> (1, 20): trailing zeros say nothing."""
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
