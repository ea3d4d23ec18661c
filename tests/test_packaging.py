"""What is packed: the packages and data files of the tree, and of the wheel when CI names one."""

from __future__ import annotations

import os
import subprocess
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).resolve().parent.parent
HOUSES = ("compiler", "runtime", "targets")
DATA_SUFFIXES = (".html", ".j2", ".json")


def tree_files() -> set[str]:
    """Files that belong in the wheel, named as in the wheel: edgelm/runtime/model.py."""
    found = [ROOT / "src/edgelm/py.typed", *(ROOT / "src/edgelm").glob("*.py")]
    names = {f"edgelm/{path.name}" for path in found}
    for house in HOUSES:
        for path in (ROOT / house).rglob("*"):
            if path.suffix in (".py", *DATA_SUFFIXES):
                names.add(f"edgelm/{path.relative_to(ROOT).as_posix()}")
    return names


def tree_packages() -> set[str]:
    folders = {name.rpartition("/")[0] for name in tree_files() if name.endswith(".py")}
    return {folder.replace("/", ".") for folder in folders}


def test_every_folder_with_code_is_a_package() -> None:
    assert tree_packages() == set(find_packages(str(ROOT / "src")))


@pytest.mark.parametrize("house", HOUSES)
def test_the_links_into_src_are_tracked(house: str) -> None:
    link = ROOT / "src/edgelm" / house
    assert link.readlink() == Path("../..") / house
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--stage", f"src/edgelm/{house}"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert listing.stdout.startswith("120000 ")


def test_no_conftest_at_the_root() -> None:
    # It would put the root on sys.path, where `import runtime` loads the same file a second time.
    assert not (ROOT / "conftest.py").exists()


def test_every_requirement_is_pinned() -> None:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for wanted in map(Requirement, requires("edgelm") or []):
        for pin in pins[canonicalize_name(wanted.name)]:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert exact.version in wanted.specifier, f"{pin} does not satisfy {wanted}"


@pytest.mark.skipif("EDGELM_WHEEL" not in os.environ, reason="CI names the wheel in EDGELM_WHEEL")
def test_the_wheel_holds_the_tree() -> None:
    with zipfile.ZipFile(os.environ["EDGELM_WHEEL"]) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("edgelm/")}
    assert packed == tree_files()
