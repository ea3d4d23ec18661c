"""The recipe: everything a compile can be told, in one typed class tree.

The tree is at once the defaults, the validation, the YAML file, the command-line flags, the JSON
Schema and docs/recipe.md. `load_recipe` merges a file and the command line and remembers where
each value came from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from edgelm.compiler.demands import BudgetConfig, MeasureConfig, VerifyConfig
from edgelm.compiler.options import Leaf, leaves, option, section, sections
from edgelm.compiler.rules import check, split_target
from edgelm.compiler.sections import (
    DataConfig,
    GgufConfig,
    LoraConfig,
    QuantizeConfig,
    RecoverConfig,
    TrainConfig,
)
from edgelm.compiler.shrinking import DistilConfig, PruneConfig
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.manifest import Pooling, TaskKind
from edgelm.runtime.schema import SchemaError, decode, encode


@dataclass(frozen=True)
class Recipe:
    """What to compile, from what, for which targets."""

    model: str = option(
        "",
        "A Hugging Face directory, a .gguf file, a hub id, or `pkg:PACKAGE/PATH` inside an "
        "installed package.",
    )
    task: TaskKind = option("text-classification", "What the model shall answer.", flag="--task")
    targets: list[str] = option(
        ["onnx:int8", "gguf:q8_0"], "TARGET:PRECISION, repeated.", flag="--target", many=True
    )
    output: str | None = option(
        None, "Directory to write the bundle to; NAME.edgelm when left out.", flag="--output"
    )
    name: str | None = option(
        None, "Name of the bundle; taken from the output when left out.", flag="--name"
    )
    version: str = option("1.0.0", "Version of the bundle.", flag="--bundle-version")
    release: int = option(1, "Release counter, which only ever grows.", flag="--release")
    revision: str | None = option(None, "Revision of a hub model.", flag="--revision")
    adapter: str | None = option(
        None, "Generation: a LoRA directory of peft, merged into the model instead of training.",
        flag="--adapter",
    )  # fmt: skip
    max_tokens: int | None = option(
        None,
        "Longer texts are truncated to this many tokens; for generation prompt and answer "
        "together. 128, for generation 1024, when left out, and never more than the model takes.",
        flag="--max-tokens",
    )
    pooling: Pooling | None = option(
        None,
        "Embeddings: mean, cls (encoders) or last; from the model's own files, else mean, when "
        "left out.",
        flag="--pooling",
    )
    normalize: bool | None = option(
        None, "Embeddings of length one; from the model's own files when left out.",
        flag="--normalize",
    )  # fmt: skip
    threshold: float = option(
        0.5, "Multi-label: least probability of a label that is given.", flag="--threshold"
    )
    seed: int = option(0, "Seed of every random choice.", flag="--seed")
    threads: int | None = option(
        None, "Threads of training and of the engines; all cores when left out.", flag="--threads"
    )
    cache_dir: str | None = option(
        None, "Where finished stages are kept; ~/.cache/edgelm when left out.", flag="--cache-dir"
    )
    data: DataConfig = section(DataConfig, "The texts.")
    train: TrainConfig = section(TrainConfig, "Fine-tuning.")
    lora: LoraConfig = section(LoraConfig, "Adapters.")
    prune: PruneConfig = section(PruneConfig, "Leaving out parts of the model.")
    distil: DistilConfig = section(DistilConfig, "Learning from the model as a teacher.")
    quantize: QuantizeConfig = section(QuantizeConfig, "Quantization.")
    recover: RecoverConfig = section(RecoverConfig, "Recovery of quantized variants.")
    gguf: GgufConfig = section(GgufConfig, "GGUF files.")
    verify: VerifyConfig = section(VerifyConfig, "Verification.")
    measure: MeasureConfig = section(MeasureConfig, "Measuring latency.")
    budget: BudgetConfig = section(
        BudgetConfig, "What the search for the best variant has to meet."
    )
    origins: dict[str, str] = field(default_factory=dict[str, str], init=False, compare=False)

    def __post_init__(self) -> None:
        check(cast("Any", self))  # this file has two names to a type checker


def load_recipe(file: Path | None, overrides: dict[str, Any]) -> Recipe:
    """Merge a YAML file (or None) and `{"train.epochs": 2}`-like overrides. Raises RecipeError."""
    data: dict[str, Any] = {} if file is None else _read_yaml(file)
    for name, _, _ in sections(Recipe):  # a section whose keys are all comments reads as null
        if name in data and data[name] is None:
            data[name] = {}
    origins = {leaf.key: "default" for leaf in leaves(Recipe)}
    for leaf in leaves(Recipe):
        if _lookup(data, leaf.path) is not None:
            origins[leaf.key] = str(file)
    for key, value in overrides.items():
        _put(data, key, value, file)
        origins[key] = "command line"
    try:
        recipe = decode(Recipe, data)
    except SchemaError as err:
        where = f"{file}: " if file else ""
        raise RecipeError(f"{where}{err}", hint="docs/recipe.md lists every key") from err
    recipe.origins.update(origins)
    return recipe


def with_overrides(recipe: Recipe, overrides: dict[str, Any], origin: str) -> Recipe:
    """The recipe with other values, of which `origin` tells where they came from; None for a
    section gives it its defaults. Raises RecipeError."""
    data = encode(recipe)
    origins = data.pop("origins")
    for key, value in overrides.items():
        if key in {name for name, _, _ in sections(Recipe)}:
            _put(data, key, {})
            origins = {k: o for k, o in origins.items() if not k.startswith(f"{key}.")}
            continue
        _put(data, key, value)
        origins[key] = origin
    changed = decode(Recipe, data)
    changed.origins.update(origins)
    return changed


def dump_recipe(recipe: Recipe) -> str:
    """YAML of the resolved recipe, with a comment behind each value that is not a default."""
    import yaml

    data = encode(recipe)
    del data["origins"]
    lines = [f"# {key}: {o}" for key, o in sorted(recipe.origins.items()) if o != "default"]
    origin = "# Where the values that are not defaults came from:\n" + "\n".join(lines)
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"{origin}\n{body}" if lines else body


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _yaml_loader())
    except FileNotFoundError as err:
        raise RecipeError(f"{file}: no such recipe") from err
    except (OSError, UnicodeDecodeError) as err:
        raise RecipeError(f"{file}: cannot be read: {err}") from err
    except yaml.YAMLError as err:
        raise RecipeError(f"{file}: not valid YAML: {err}") from err
    if not isinstance(data, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of keys to values")
    return data


def _yaml_loader() -> Any:
    """YAML's safe loader, but 2e-3 is a number (YAML 1.2) and no key may stand twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [
                self.construct_object(key, deep=True)
                for key, _ in node.value
                if key.tag != "tag:yaml.org,2002:merge"
            ]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", node.start_mark
                    )
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _put(data: dict[str, Any], key: str, value: Any, file: Path | None = None) -> None:
    *parents, last = key.split(".")
    node: Any = data
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{file}: {parent}: {node!r} is not a mapping")
    node[last] = value


def _lookup(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    node: Any = data
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


__all__ = ["Leaf", "Recipe", "dump_recipe", "leaves", "load_recipe", "split_target"]
