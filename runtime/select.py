"""Which variant of a bundle to open on this machine."""

from __future__ import annotations

from collections.abc import Callable

from edgelm.runtime.errors import TargetUnavailable, UnknownVariant
from edgelm.runtime.manifest import Manifest, Variant
from edgelm.runtime.schema import nearest


def select_variant(
    manifest: Manifest, name: str | None, why_not: Callable[[Variant], str | None]
) -> Variant:
    """The variant called `name` (or the best of the target called so), else the best that runs.

    `why_not(variant)` gives the reason why its target cannot run here, or None; each target is
    asked for once. Best is the most texts (generation: tokens of an answer) per second, as measured
    when the bundle was compiled; the first where nothing was measured. Raises UnknownVariant,
    TargetUnavailable.
    """
    wanted = [v for v in manifest.variants if name is None or name in (v.name, v.target)]
    if not wanted:
        names = [v.name for v in manifest.variants]
        raise UnknownVariant(
            f"no variant {name!r}{nearest(str(name), names)}",
            hint=f"the bundle holds {', '.join(names)}",
        )
    reasons: dict[str, str] = {}
    for variant in sorted(wanted, key=_speed, reverse=True):  # asking loads the engine
        if variant.target not in reasons:
            reason = why_not(variant)
            if reason is None:
                return variant
            reasons[variant.target] = reason
    said = "; ".join(f"{target}: {reason}" for target, reason in reasons.items())
    raise TargetUnavailable(f"no variant can run here: {said}")


# ONNX precisions that a GPU has operators for, best first. Speeds were measured on a CPU.
_ON_GPU = ("fp16", "fp32")


def best_on_gpu(manifest: Manifest, chosen: Variant) -> Variant:
    """The variant of the same target that suits a GPU best; `chosen` where none does."""
    found = {v.precision: v for v in manifest.variants if v.target == chosen.target}
    return next((found[p] for p in _ON_GPU if p in found), chosen)


def _speed(variant: Variant) -> float:
    measured = variant.measured
    return (measured and (measured.texts_per_s or measured.answer_tokens_per_s)) or 0.0
