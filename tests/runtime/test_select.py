"""Which variant is opened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgelm.runtime.errors import TargetUnavailable, UnknownVariant
from edgelm.runtime.manifest import Manifest, Measured, Task, TextLimits, Variant
from edgelm.runtime.select import select_variant


def variant(target: str, precision: str, speed: float | None) -> Variant:
    measured = None if speed is None else Measured(1, texts_per_s=speed)
    return Variant(f"{target}-{precision}", target, precision, (), measured=measured)


def manifest(*variants: Variant) -> Manifest:
    task = Task("text-classification", ("a", "b"))
    return Manifest(1, "m", "1", 1, task, TextLimits(8), (), variants)


BUNDLE = manifest(
    variant("onnx", "fp32", 100.0),
    variant("onnx", "int8", 300.0),
    variant("gguf", "q8_0", 200.0),
    variant("gguf", "f16", None),
)


def runs(candidate: Variant) -> str | None:
    return None


def only_gguf(candidate: Variant) -> str | None:
    return None if candidate.target == "gguf" else "onnxruntime is missing"


@pytest.mark.parametrize(
    ("name", "why_not", "chosen"),
    [
        (None, runs, "onnx-int8"),
        (None, only_gguf, "gguf-q8_0"),
        ("onnx-fp32", runs, "onnx-fp32"),
        ("gguf-f16", only_gguf, "gguf-f16"),
        ("gguf", runs, "gguf-q8_0"),
        ("onnx", runs, "onnx-int8"),
    ],
)
def test_the_fastest_that_runs_and_is_asked_for(name, why_not, chosen) -> None:
    assert select_variant(BUNDLE, name, why_not).name == chosen


def test_generation_goes_by_tokens_of_an_answer() -> None:
    slow, fast = variant("gguf", "f16", None), variant("gguf", "q4_0", None)
    slow = replace(slow, measured=Measured(1, answer_tokens_per_s=20.0))
    fast = replace(fast, measured=Measured(1, answer_tokens_per_s=90.0, prompt_tokens_per_s=1.0))
    assert select_variant(manifest(slow, fast), None, runs).name == "gguf-q4_0"


def test_the_first_where_nothing_was_measured() -> None:
    bundle = manifest(variant("gguf", "f16", None), variant("onnx", "fp32", None))
    assert select_variant(bundle, None, runs).name == "gguf-f16"


def test_unknown_and_unavailable() -> None:
    with pytest.raises(UnknownVariant, match=r"'onnx-int4' \(did you mean 'onnx-int8'\?\)") as err:
        select_variant(BUNDLE, "onnx-int4", runs)
    assert err.value.hint == "the bundle holds onnx-fp32, onnx-int8, gguf-q8_0, gguf-f16"
    with pytest.raises(TargetUnavailable, match="onnx: onnxruntime is missing"):
        select_variant(BUNDLE, "onnx", only_gguf)
