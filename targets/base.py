"""What a target is: a name, what it can do, whether it can run here, and its two halves.

`lower` runs at compile time (it may import torch), `open` at run time (it never does). Both take
and give plain files, so the compiler can cache, verify and pack what lies between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgelm.runtime.engine import DecoderOptions, DecoderSession, EngineOptions, Session, TokenBatch
from edgelm.runtime.errors import MissingExtra, TargetUnavailable
from edgelm.runtime.manifest import Task, TaskKind, TextLimits, Variant
from edgelm.targets.precision import Grade, Precision

if TYPE_CHECKING:
    from edgelm.targets.costs import Table
    from edgelm.targets.curvature import Loss  # which needs torch
    from edgelm.targets.grid import Grids  # as does this


@dataclass(frozen=True)
class Capabilities:
    """What a target can be asked for here, beside its table of precisions."""

    devices: tuple[str, ...]  # for one task or another
    absent: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # device -> why it is not there
    auto_gpu: bool = False  # whether the device auto means a GPU where there is one
    guesses: bool = False  # its decoders can be opened with `DecoderOptions.guesses`
    kinds: tuple[str, ...] = ()  # that matrices can be of with the precision AUTO
    # of tasks that differ from that
    task_devices: Mapping[TaskKind, tuple[str, ...]] = field(
        default_factory=dict[TaskKind, tuple[str, ...]]
    )

    def devices_for(self, task: TaskKind) -> tuple[str, ...]:
        """The devices here that a model of this task can be opened on."""
        return self.task_devices.get(task, self.devices)


@dataclass(frozen=True)
class Quantization:
    """Options of lowering that a recipe's `quantize` section states."""

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    smooth: float | None = None  # how far outliers move from activations into weights
    reduce_range: bool = True  # keep 8-bit weights in 7 bits, so that no CPU's products saturate
    # regular expression, searched in the names of the file's tensors -> their type; first one wins
    tensor_types: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class LowerRequest:
    """One variant to be made from a merged Hugging Face model."""

    model_dir: Path  # config.json, model.safetensors, tokenizer files
    task: Task
    text: TextLimits
    precision: str
    folder: Path  # an empty folder to write into
    quantization: Quantization = field(default_factory=Quantization)
    calibration: Callable[[], Iterable[TokenBatch]] = tuple  # training texts, tokenized
    imatrix: Path | None = None  # importance matrix, in llama.cpp's format
    recovered: Path | None = None  # as model_dir, of values that the variant's grids hold
    types: Mapping[str, str] = field(default_factory=dict[str, str])  # of the file's tensors
    curvature: Path | None = None  # what errors of each matrix cost
    feedback: bool = False  # `tabulate`: whether the variant will be recovered
    converter: Path | None = None  # llama.cpp's convert_hf_to_gguf.py, to write GGUF files with
    split_bytes: int | None = None  # the most of one GGUF file; None: all in one
    report: Callable[[str], None] = lambda step: None  # says which step is running
    advance: Callable[[int, int], None] = lambda done, total: None  # how far it is


@dataclass(frozen=True)
class Lowered:
    """What `lower` wrote."""

    files: tuple[str, ...]  # relative to the folder
    engine: dict[str, str]  # package -> lowest version that runs the files
    # for `open`, kept in the manifest
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()  # what the user should know of the files
    types: dict[str, str] = field(default_factory=dict[str, str])  # tensor -> type, where chosen
    graded_as: Grade | None = None  # whose limits hold, where the precision has no grade


# Packages of which there is no release for every Python that edgelm runs on -> the first that has
_PYTHONS = {"onnxruntime-genai": (3, 11)}


def missing(package: str, python: tuple[int, int] = sys.version_info[:2]) -> TargetUnavailable:
    """The error for a package that a target's compile-time half needs."""
    least = _PYTHONS.get(package, python)
    if python < least:
        return TargetUnavailable(
            f"{package} has no release for Python {python[0]}.{python[1]}; it needs Python "
            f"{least[0]}.{least[1]} or newer",
            hint="compile with such a Python (the bundle runs on this one too), or for another "
            "target, such as gguf",
        )
    return MissingExtra(package, "gguf" if package == "llama-cpp-python" else "compile")


class Target(Protocol):
    """One folder under targets/ gives one object of this shape, named TARGET."""

    name: str
    precisions: tuple[Precision, ...]  # the table
    engine_package: str  # whose version decides what the engine answers
    lower_packages: tuple[str, ...]  # whose versions decide what `lower` writes
    decoder_packages: tuple[str, ...]  # the same for the task text-generation

    def capabilities(self) -> Capabilities: ...

    def available(self) -> str | None:
        """None when the engine can run here, else the reason with the command that mends it."""
        ...

    def open(self, folder: Path, variant: Variant, task: Task, options: EngineOptions) -> Session:
        """Open the variant's files under `folder` (the bundle's root; paths as in `variant.files`).

        Raises TargetUnavailable, MissingExtra, BundleError."""
        ...

    def open_decoder(
        self, folder: Path, variant: Variant, text: TextLimits, options: DecoderOptions
    ) -> DecoderSession:
        """As `open`, for a variant of the task text-generation."""
        ...

    def lower(self, request: LowerRequest) -> Lowered:
        """Write the variant's files into `request.folder`. Raises ModelError, MissingExtra."""
        ...

    def grids(self, request: LowerRequest) -> Grids:
        """What the matrices of a variant whose precision has `recovered_bits` can hold;
        `request.folder` is for scratch files. Raises ModelError, MissingExtra."""
        ...

    def weigh(self, model: Any, request: LowerRequest, losses: Iterable[Loss], path: Path) -> None:
        """For the precision AUTO: differentiate `losses` of the Hugging Face `model`, and write
        what errors of its matrices cost, later a request's `curvature`. Raises ModelError."""
        ...

    def tabulate(self, request: LowerRequest) -> Table:
        """For the precision AUTO: what each type of each matrix takes and costs; `request.folder`
        is for scratch files, from which a table that was cut off may go on. Raises ModelError,
        MissingExtra."""
        ...
