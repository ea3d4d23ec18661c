"""Which execution providers a session is opened with, and why one of a GPU did not start."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from edgelm.runtime.engine import split_device
from edgelm.runtime.errors import TargetUnavailable

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_GPU = {"cuda": (CUDA, "CUDA"), "tensorrt": (TENSORRT, "TensorRT")}
_GPU_PACKAGE = "onnxruntime-gpu"
INSTALL = f'install what it needs, for CUDA by: pip install "{_GPU_PACKAGE}[cuda,cudnn]"'

# Precisions whose operators a GPU has. The others' quantized products stay on the CPU, with a copy
# to and fro around each, so only who names the GPU gets one for them.
FLOATS = ("fp32", "fp16")

Options = dict[str, str]


@dataclass(frozen=True)
class Placement:
    """Where a session runs: the device as a loaded model names it, providers best first."""

    device: str
    providers: tuple[tuple[str, Options], ...]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def gpu_index(self) -> int:
        return split_device(self.device)[1] or 0


ON_CPU = Placement("cpu", ((CPU, {}),))


def providers() -> tuple[str, ...]:
    """The execution providers this ONNX Runtime was built with."""
    return tuple(ort.get_available_providers())


def placements(device: str, precision: str, available: Sequence[str]) -> tuple[Placement, ...]:
    """What to try, in this order. One that is asked for by name is tried alone: who wants a GPU is
    told where there is none. Raises TargetUnavailable, UsageError."""
    kind, index = split_device(device)
    if kind == "cpu":
        return (ON_CPU,)
    if kind == "auto":
        on_gpu = CUDA in available and precision in FLOATS
        return (_on_gpu("cuda", None, precision, available), ON_CPU) if on_gpu else (ON_CPU,)
    reason = absent(available).get(kind)
    if reason is not None:
        what, _, hint = reason.partition("; ")
        raise TargetUnavailable(what, hint=hint)
    return (_on_gpu(kind, index, precision, available),)


def absent(available: Sequence[str]) -> dict[str, str]:
    """Devices that this ONNX Runtime was not built for -> the reason and the cure."""
    return {
        kind: f"this ONNX Runtime has no {title} support; "
        f"replace it with: pip uninstall -y onnxruntime && pip install {_GPU_PACKAGE}"
        for kind, (provider, title) in _GPU.items()
        if provider not in available
    }


def missing_devices() -> dict[str, str]:
    """GPUs that cannot be used here -> why: not built for, or a library is missing. Whether there
    is one shows when a session is opened."""
    available = providers()
    missing = absent(available)
    if len(missing) < len(_GPU):
        preload()
    for kind, (provider, _) in _GPU.items():
        reason = why_not(provider) if kind not in missing else None
        if reason is not None:
            missing[kind] = f"{reason}; {INSTALL}"
    return missing


def _on_gpu(kind: str, index: int | None, precision: str, available: Sequence[str]) -> Placement:
    """CUDA takes what TensorRT cannot, the CPU what CUDA cannot."""
    number = {"device_id": str(index or 0)}
    found: list[tuple[str, Options]] = []
    if kind == "tensorrt":
        # An engine on the disk is code that is run when it is read: none is written or read.
        tensorrt = {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"}
        half = {"trt_fp16_enable": str(int(precision == "fp16"))}
        found.append((TENSORRT, number | tensorrt | half))
    if CUDA in available:
        # TF32 has 10 bits of mantissa: fp32 would not be what was verified.
        found.append((CUDA, number | {"use_tf32": "0"}))
    name = kind if index is None else f"{kind}:{index}"
    return Placement(name, (*found, (CPU, {})))


def preload() -> None:
    """Load CUDA's libraries where pip installed them, which no loader looks through."""
    if importlib.util.find_spec("nvidia") is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls(directory="")


def why_not(provider: str) -> str | None:
    """The library that is missing, where that is why a provider did not start."""
    title = next(title for name, title in _GPU.values() if name == provider)
    folder = Path(ort.__file__).parent / "capi"
    prefix, suffix = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    parts = [f"{prefix}onnxruntime_providers_{part}{suffix}" for part in ("shared", title.lower())]
    try:
        for part in parts:
            if not (folder / part).is_file():
                return f"{title}: ONNX Runtime brings no {part}"
            ctypes.CDLL(str(folder / part), ctypes.RTLD_GLOBAL)
    except OSError as err:
        return f"{title}: {err}"
    return None
