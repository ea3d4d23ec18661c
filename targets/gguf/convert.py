"""llama.cpp's own convert_hf_to_gguf.py, for architectures that edgelm's tables lack.

The script is the user's, of whatever llama.cpp: what it wrote is taken for a stranger's file. It
is looked through, and tried in a process of its own, before this one opens it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.files import sha256_file
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.causal import check_pooling
from edgelm.targets.child import run_python
from edgelm.targets.gguf.check import Header, read_header
from edgelm.targets.gguf.facts import Facts, read_facts
from edgelm.targets.gguf.trial import try_out
from edgelm.targets.gguf.weights import Weights

SCRIPT = "convert_hf_to_gguf.py"
_PARTS = ("conversion", "gguf-py/gguf")  # what it imports of its own checkout
_LINES = 12  # of its output, in an error
_HEAD = "cls.output.weight"
# Tensors of two axes that nothing is multiplied with
_NO_MATRIX = re.compile(r"^(position_embd|token_types)\.|norm\.weight$|attn_rel_b\.weight$")


@dataclass(frozen=True)
class Converted:
    """A float file that the script wrote."""

    path: Path
    header: Header
    facts: Facts
    options: dict[str, Any]  # of a variant

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Shapes (R, C), or with the axis of experts before it, by name."""
        return {
            name: tensor.shape
            for name, tensor in self.header.tensors.items()
            if len(tensor.shape) > 1
            and name.endswith(".weight")
            and _NO_MATRIX.search(name) is None
        }

    @property
    def variant(self) -> Variant:
        """The file as a bundle would name it."""
        files = (FileEntry(self.path.name, "0" * 64, self.path.stat().st_size),)
        return Variant("converted", "gguf", "float", files, self.options)


def find_script(path: Path) -> Path | None:
    """The script at `path`, or in that folder, a checkout of llama.cpp; None without one."""
    path = path.expanduser()
    script = path / SCRIPT if path.is_dir() else path
    return script.resolve() if script.is_file() else None


def digest(script: Path) -> str:
    """sha256 of the script and of what it imports of its checkout."""
    found = [p for part in _PARTS for p in (script.parent / part).rglob("*.py")]
    sums = {p.relative_to(script.parent).as_posix(): sha256_file(p) for p in [script, *found]}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def convert(
    script: Path,
    model_dir: Path,
    path: Path,
    precision: str | None,
    task: Task,
    text: TextLimits,
) -> Converted:
    """Let the script write `path` in f32, f16 or bf16; None: the type that holds the weights as
    they are. Raises ModelError, with the end of what the script said."""
    _check_runs_no_code(model_dir)
    if precision is None:
        precision = _own_precision(model_dir)
    arguments = [str(script), str(model_dir.resolve())]
    arguments += ["--outfile", str(path.resolve()), "--outtype", precision]
    done = run_python(arguments, _environment(script))
    if done.code != 0 or not path.is_file():
        said = "\n".join(f"    {line}" for line in done.lines[-_LINES:])
        raise ModelError(
            f"{script}: it cannot convert the model; the end of what it said:\n{said}",
            hint=_hint(done.lines),
        )
    try:
        header = read_header(path)
        facts = read_facts(header, path)
    except BundleError as err:
        raise ModelError(
            f"{script.name} wrote a file that edgelm does not run: {err.message}",
            hint="choose another target for this model, such as onnx",
        ) from err
    made = Converted(path, header, facts, _options(header, facts, task, text))
    try_out(path.parent, made.variant, task, text)
    return made


def _environment(script: Path) -> dict[str, str]:
    import torch

    before = os.environ.get("PYTHONPATH")
    places = [str(script.parent / "gguf-py"), str(script.parent), *([before] if before else [])]
    return {
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left in the user's checkout
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def _options(header: Header, facts: Facts, task: Task, text: TextLimits) -> dict[str, Any]:
    """What the engine needs to know. Raises ModelError for a file that is not of the task."""
    what, other = (
        ("an encoder", "text-generation")
        if facts.is_encoder
        else ("a decoder", "text-classification")
    )
    if task.kind == other:
        raise ModelError(f"the converted model is {what}, which is not for {task.kind}")
    if text.max_tokens > facts.context_length:
        raise ModelError(
            f"max_tokens is {text.max_tokens}, the model's positions end at {facts.context_length}",
            hint=f"lower max_tokens to {facts.context_length}",
        )
    options: dict[str, Any] = {"max_tokens": text.max_tokens}
    if task.kind == "text-generation":
        return options | {"decoder": True}
    if task.kind == "feature-extraction":
        if not facts.is_encoder:
            check_pooling(task.pooling)
        options["pooling"] = task.pooling
    elif _HEAD in header.tensors:
        options["pooling"] = "rank"
    else:
        raise ModelError(f"the converted file has no classification head ({_HEAD})")
    if task.pair and text.type_ids and facts.n_token_types > 1:
        options["type_ids"] = True
    return options


def _own_precision(model_dir: Path) -> str:
    with Weights(model_dir) as weights:
        return weights.own_precision(name for name in weights if len(weights.shape(name)) > 1)


def _check_runs_no_code(model_dir: Path) -> None:
    """The script lets transformers run Python code that the model's own files name."""
    for path in sorted(model_dir.glob("*.json")):
        if '"auto_map"' in path.read_text("utf-8", errors="replace"):
            raise ModelError(
                f"{path.name}: `auto_map`: the model wants to run Python code of its own",
                hint="edgelm runs no code of models: if transformers knows this architecture "
                "itself, remove `auto_map` from the model's files",
            )


def _hint(lines: tuple[str, ...]) -> str:
    if any("ModuleNotFoundError" in line for line in lines[-_LINES:]):
        return "install what the script imports: its checkout's requirements.txt lists it"
    return "choose another target for this model, such as onnx, or a newer llama.cpp"
