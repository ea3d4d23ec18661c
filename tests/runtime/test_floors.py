"""Engines older than a variant needs are refused."""

from __future__ import annotations

from importlib import metadata

import pytest

from edgelm.runtime.errors import BundleError, TargetUnavailable
from edgelm.runtime.floors import check_engine
from edgelm.runtime.manifest import Variant

INSTALLED = {"onnxruntime-gpu": "1.22.0rc1+cu12", "llama-cpp-python": "0.3.9"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in INSTALLED:
            raise metadata.PackageNotFoundError(name)
        return INSTALLED[name]

    monkeypatch.setattr(metadata, "version", version)


def check(package: str, floor: str) -> None:
    check_engine(Variant("v", "t", "p", (), engine={package: floor}))


def test_new_enough_and_unknown_packages_pass() -> None:
    check("onnxruntime", ">=1.22")
    check("onnxruntime", ">=1.22.0.0")
    check("llama-cpp-python", ">=0.3.9")
    check("something", ">=9")


def test_too_old_is_unavailable_with_the_cure() -> None:
    with pytest.raises(TargetUnavailable, match="needs onnxruntime >=1") as e:
        check("onnxruntime", ">=1.28.1")
    assert e.value.hint == 'update it with: pip install -U "onnxruntime-gpu>=1.28.1"'
    with pytest.raises(TargetUnavailable, match=r"0\.3\.9 is installed"):
        check("llama-cpp-python", ">=0.3.36")


@pytest.mark.parametrize(
    "floor", ["1.2", "==1.2", ">=", ">=1.2,<2", ">=1..2", ">=x", ">=" + "9" * 99]
)
def test_what_is_no_floor_is_a_bundle_error(floor: str) -> None:
    with pytest.raises(BundleError, match="engine: onnxruntime"):
        check("onnxruntime", floor)
