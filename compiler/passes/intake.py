"""intake: find the model, refuse what is unsafe, and learn what its own files say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from edgelm.compiler.cache import digest
from edgelm.compiler.context import Context, Source
from edgelm.compiler.passes import Pass
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.files import sha256_file
from edgelm.runtime.manifest import Pooling, parse_json
from edgelm.targets.gguf.shards import shard_names

HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
GGUF_SUFFIX = ".gguf"
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")  # their positions
DECIDING = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "1_Pooling/config.json")


class Intake(Pass):
    """Sets context.source."""

    name = "intake"

    def inputs(self, context: Context) -> None:
        return None

    def load(self, context: Context, folder: Path) -> None:
        context.source = read_source(context.unpacked or find_model(context.recipe))


def find_model(recipe: Recipe) -> Path:
    """The local directory of `recipe.model`. Raises ModelError."""
    name = recipe.model
    if name.startswith("pkg:"):
        return _in_package(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            f"{name}: not a directory, a model is a Hugging Face directory",
            hint="name the directory with its config.json",
        )
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(
            f"{name}: no such directory",
            hint="a model is a Hugging Face directory, a .gguf file, a hub id, or pkg:PACKAGE/PATH",
        )
    return _from_hub(name, recipe.revision)


def find_gguf(recipe: Recipe) -> list[Path]:
    """The .gguf file that `recipe.model` names; where it begins a set, all of them. Raises
    ModelError."""
    name = recipe.model
    path = _in_package(name) if name.startswith("pkg:") else Path(name).expanduser()
    try:
        files = [path.with_name(one) for one in shard_names(path.name)]
    except ValueError as err:
        raise ModelError(str(err)) from err
    for file in files:
        if not file.is_file():
            more = f", one of {len(files)} that hold the model" if len(files) > 1 else ""
            raise ModelError(f"{file}: no such file{more}")
    return files


def read_source(folder: Path) -> Source:
    """Check the directory's files and read its configuration. Raises ModelError."""
    config = read_json(folder / "config.json")
    if "auto_map" in config:
        raise ModelError(
            f"{folder}/config.json: `auto_map`: the model wants to run Python code of its own",
            hint="edgelm runs no code of models: if transformers knows this architecture itself, "
            "remove `auto_map` from config.json",
        )
    if "_attn_implementation_internal" in config:
        raise ModelError(
            f"{folder}/config.json: `_attn_implementation_internal` can name code to run",
            hint="remove that key from config.json",
        )
    _check_weights(folder)
    pooling, normalize = _sentence_transformers(folder)
    files = sorted({p for pattern in DECIDING for p in folder.glob(pattern) if p.is_file()})
    return Source(
        folder=folder,
        config=config,
        digest=digest({p.relative_to(folder).as_posix(): sha256_file(p) for p in files}),
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(folder, config),
        prompts=_prompts(folder / "config_sentence_transformers.json"),
    )


def _in_package(name: str) -> Path:
    package, _, inside = name[len("pkg:") :].partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{name}: no package {package!r} is installed",
            hint=f"pip install {package.replace('_', '-')}",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    there = path.is_file() if inside.endswith(GGUF_SUFFIX) else path.is_dir()
    if ".." in Path(inside).parts or Path(inside).is_absolute() or not there:
        kind = "file" if inside.endswith(GGUF_SUFFIX) else "directory"
        raise ModelError(f"{name}: the package {package} has no {kind} {inside!r}")
    return path


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except GatedRepoError as err:
        raise ModelError(
            f"{where}: the hub gives this model only to those it has let in",
            hint="ask for access on the model's page, then `hf auth login`",
        ) from err
    except RepositoryNotFoundError as err:
        raise ModelError(
            f"{where}: neither a local directory nor a model on the hub",
            hint="check the spelling; for a private model, `hf auth login` first",
        ) from err
    except RevisionNotFoundError as err:
        raise ModelError(f"{where}: the hub has no such revision of the model") from err
    except LocalEntryNotFoundError as err:
        raise ModelError(
            f"{where}: not a local directory, and the hub cannot be reached",
            hint="download the model on a machine with network and pass its directory",
        ) from err
    except (HfHubHTTPError, OSError) as err:
        raise ModelError(f"{where}: the hub refused or could not be reached: {err}") from err


def has_head(config: dict[str, Any]) -> bool:
    """Whether the model came with a classification head."""
    return any("SequenceClassification" in str(a) for a in config.get("architectures") or [])


def read_json(path: Path) -> dict[str, Any]:
    """A file of the model that holds a mapping. Raises ModelError."""
    try:
        data = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError as err:
        raise ModelError(f"{path}: missing, so this is no Hugging Face model") from err
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    except BundleError as err:
        raise ModelError(err.message) from err
    if not isinstance(data, dict):
        raise ModelError(f"{path}: not a mapping")
    return data


def _check_weights(folder: Path) -> None:
    if list(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: its weights are {', '.join(pickles)}, which can run code when loaded",
            hint="convert them once, where you trust the model: "
            'AutoModel.from_pretrained(DIR).save_pretrained("converted")',
        )
    raise ModelError(f"{folder}: no model.safetensors in it")


def _sentence_transformers(folder: Path) -> tuple[Pooling | None, bool | None]:
    """Pooling and normalization that modules.json states, or (None, None)."""
    path = folder / "modules.json"
    if not path.is_file():
        return None, None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(m["type"].rsplit(".", 1)[-1], m["path"]) for m in modules]
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise ModelError(f"{path}: cannot be read: {err}") from err
    unknown = [k for k, _ in kinds if k not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ModelError(
            f"{path}: the sentence-transformers module {unknown[0]!r} is not supported",
            hint="supported are Transformer, Pooling and Normalize",
        )
    pooling = None
    for kind, where in kinds:
        if kind == "Pooling":
            pooling = _pooling_mode(folder / where / "config.json")
    return pooling, any(kind == "Normalize" for kind, _ in kinds)


_POOLING_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
}


def _pooling_mode(path: Path) -> Pooling:
    config = read_json(path)
    stated = config.get("pooling_mode")
    if stated is None:
        stated = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    modes = [stated] if isinstance(stated, str) else list(stated)
    if len(modes) != 1 or modes[0] not in _POOLING_MODES:
        raise ModelError(f"{path}: pooling {modes} is not supported (cls, mean or last is)")
    return _POOLING_MODES[modes[0]]


def _prompts(path: Path) -> tuple[str, ...]:
    """Names of the instructions that sentence-transformers can put before a text."""
    prompts = read_json(path).get("prompts") if path.is_file() else None
    return tuple(k for k, text in prompts.items() if text) if isinstance(prompts, dict) else ()


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    limits = [65536]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        offset = 0
        if config.get("model_type") in COUNTS_FROM_PADDING:
            offset = int(config.get("pad_token_id") or 1) + 1
        limits.append(positions - offset)
    for name, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        if (folder / name).is_file():
            value = read_json(folder / name).get(key)
            if isinstance(value, int) and value > 0:
                limits.append(value)
    return min(limits)
