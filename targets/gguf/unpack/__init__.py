"""A GGUF file of a decoder -> a Hugging Face directory: lowering, backwards.

transformers reads such files too, but drops what it has no key for (scaled rotary positions, the
pre-tokenizer) without a word. Here the tables that lowering uses are read the other way, and what
they do not know is refused. Quantized tensors become float32, float tensors stay as they are.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from edgelm.runtime.errors import BundleError, MissingExtra, ModelError
from edgelm.targets.gguf.facts import own_keys, read_facts
from edgelm.targets.gguf.keys import DECODER_KEYS
from edgelm.targets.gguf.shards import read_model
from edgelm.targets.gguf.unpack.config import read_config, read_generation_config, read_modules
from edgelm.targets.gguf.unpack.file import File
from edgelm.targets.gguf.unpack.tensors import write_tensors
from edgelm.targets.gguf.unpack.tokenizer import write_tokenizer


def unpack(path: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    """Write the directory into `folder`, calling `report(tensors done, of how many)`.

    Raises ModelError, MissingExtra."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "compile")
    try:
        header = read_model(path)
        arch = read_facts(header, path).arch
    except BundleError as err:
        raise ModelError(err.message) from err
    if arch not in DECODER_KEYS:
        raise ModelError(
            f"{path}: its graph is {arch!r}; files of {', '.join(DECODER_KEYS)} can be unpacked",
            hint="take the model's Hugging Face directory",
        )
    unknown = own_keys(header).keys() - set(DECODER_KEYS[arch])
    if unknown:
        raise ModelError(
            f"{path}: the keys {', '.join(sorted(unknown))} of {arch!r} cannot be unpacked",
            hint="take the model's Hugging Face directory",
        )
    try:
        file = File(path, arch)
        config = read_config(file)
        write_tokenizer(file, folder)
        write_tensors(file, folder, report)
    except (ValueError, KeyError, IndexError, NotImplementedError) as err:
        raise ModelError(f"{path}: cannot be unpacked: {err}") from err
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", read_generation_config(file))
    for name, values in read_modules(file).items():
        _write_json(folder / name, values)


def _write_json(path: Path, values: object) -> None:
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
