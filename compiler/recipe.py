"""The recipe: everything a compile can be told, in one typed class tree.

The tree is at once the defaults, the validation, the YAML file, the command-line flags, the JSON
Schema and docs/recipe.md. `load_recipe` merges a file and the command line and remembers where
each value came from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgelm.compiler.options import Leaf, leaves, option, section, sections
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.manifest import Pooling, TaskKind
from edgelm.runtime.schema import SchemaError, decode, encode, nearest
from edgelm.targets import TARGETS, get_target

Method = Literal["auto", "lora", "full", "none"]
Calibration = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True)
class DataConfig:
    """Labelled texts: csv, tsv, jsonl, json, parquet, a folder, or a `datasets` directory."""

    train: str | None = option(None, "Training data.", flag="--train")
    eval: str | None = option(
        None, "Evaluation data; without it a stratified part of the training data is held out.",
        flag="--eval",
    )  # fmt: skip
    text: str | None = option(
        None, "Column of the text; found by its usual names when left out.", flag="--text-column"
    )
    pair: str | None = option(
        None, "Column of the second text, for sentence pairs.", flag="--pair-column"
    )
    label: str | None = option(
        None, "Column of the label; found by its usual names when left out.", flag="--label-column"
    )
    multi_label: bool | None = option(
        None, "Texts carry sets of labels; found out from the data when left out.",
        flag="--multi-label",
    )  # fmt: skip
    label_separator: str = option(
        ";", "What stands between the labels of one text in a csv or tsv file.",
        flag="--label-separator",
    )  # fmt: skip
    eval_fraction: float = option(
        0.1, "Share held out when there is no evaluation data.", flag="--eval-fraction"
    )


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning through transformers' Trainer."""

    method: Method = option(
        "auto",
        "lora, full, none (the model is already fine-tuned), or auto: lora for classification "
        "when there is training data, none for embeddings.",
        flag="--train-method",
    )
    epochs: float = option(8.0, "Passes over the training data, at most.", flag="--epochs")
    batch_size: int = option(32, "Texts in one optimizer step.", flag="--batch-size")
    learning_rate: float | None = option(
        None, "Peak learning rate; 2e-3 for lora and 1e-4 for full when left out.",
        flag="--learning-rate",
    )  # fmt: skip
    warmup: float = option(0.06, "Share of the steps with a rising learning rate.", flag="--warmup")
    weight_decay: float = option(0.01, "Decoupled weight decay.", flag="--weight-decay")
    early_stop: int = option(
        3, "Stop after this many epochs without a better metric; 0 never stops.",
        flag="--early-stop",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "Arithmetic of training; auto is bf16 where the processor has it.",
        flag="--train-precision",
    )  # fmt: skip
    class_weights: Literal["auto", "balanced", "none"] = option(
        "auto",
        "Weigh rare labels up; auto does it when the commonest label has over 5 x the texts "
        "of the rarest.",
        flag="--class-weights",
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = option(16, "Rank of the adapters.", flag="--lora-rank")
    alpha: int | None = option(None, "Scale; the rank when left out.", flag="--lora-alpha")
    dropout: float = option(0.05, "Dropout before the adapters.", flag="--lora-dropout")
    targets: list[str] = option(
        [], "Names of the linear layers; all of the encoder's when left out.",
        flag="--lora-target", many=True,
    )  # fmt: skip


@dataclass(frozen=True)
class QuantizeConfig:
    """How weights and activations are quantized."""

    calibration: Calibration = option(
        "minmax", "How int8-static finds the ranges of activations.", flag="--calibration"
    )
    calibration_texts: int = option(
        256, "Training texts used for calibration.", flag="--calibration-texts"
    )
    device: Literal["any", "vnni"] = option(
        "any",
        "Processors that int8 must answer alike on. `any` keeps weights in 7 bits, so that "
        "processors without VNNI do not saturate; `vnni` uses all 8.",
        flag="--int8-device",
    )


@dataclass(frozen=True)
class LimitsConfig:
    """How far a variant may be from the Hugging Face reference. Left out: by precision."""

    min_agreement: float | None = option(None, "Least share of equal labels.")
    max_drop: float | None = option(None, "Largest loss of the metric, in 0 to 1.")
    max_kl: float | None = option(None, "Largest mean KL divergence, in nats.")
    min_cosine: float | None = option(None, "Least mean cosine of embeddings.")


@dataclass(frozen=True)
class VerifyConfig:
    """Each variant is run on its real engine and compared with the reference; fails closed."""

    min_agreement: float | None = option(
        None, "Least share of equal labels, for all variants; by precision when left out.",
        flag="--min-agreement",
    )  # fmt: skip
    max_drop: float | None = option(
        None, "Largest loss of the metric, in 0 to 1; by precision when left out.",
        flag="--max-metric-drop",
    )  # fmt: skip
    max_kl: float | None = option(
        None, "Largest mean KL divergence, in nats; by precision when left out.",
        flag="--max-kl",
    )  # fmt: skip
    min_cosine: float | None = option(
        None, "Least mean cosine of embeddings; by precision when left out.",
        flag="--min-cosine",
    )  # fmt: skip
    limits: dict[str, LimitsConfig] = field(
        default_factory=dict[str, LimitsConfig],
        metadata={
            "help": "Limits of single variants, by target: `onnx:int8: {max_drop: 0.02}`.",
            "flag": None,
            "many": False,
        },
    )


@dataclass(frozen=True)
class Recipe:
    """What to compile, from what, for which targets."""

    model: str = option(
        "",
        "A Hugging Face directory, a hub id, or `pkg:PACKAGE/DIR` inside an installed package.",
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
    max_tokens: int = option(
        128, "Longer texts are truncated to this many tokens.", flag="--max-tokens"
    )
    pooling: Pooling | None = option(
        None, "Embeddings: mean, cls or last; from the model's own files when left out.",
        flag="--pooling",
    )  # fmt: skip
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
    quantize: QuantizeConfig = section(QuantizeConfig, "Quantization.")
    verify: VerifyConfig = section(VerifyConfig, "Verification.")
    origins: dict[str, str] = field(default_factory=dict[str, str], init=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)


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
        *parents, last = key.split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"{file}: {parent}: {node!r} is not a mapping")
        node[last] = value
        origins[key] = "command line"
    try:
        recipe = decode(Recipe, data)
    except SchemaError as err:
        where = f"{file}: " if file else ""
        raise RecipeError(f"{where}{err}", hint="docs/recipe.md lists every key") from err
    recipe.origins.update(origins)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML of the resolved recipe, with a comment behind each value that is not a default."""
    import yaml

    data = encode(recipe)
    del data["origins"]
    lines = [f"# {key}: {o}" for key, o in sorted(recipe.origins.items()) if o != "default"]
    origin = "# Where the values that are not defaults came from:\n" + "\n".join(lines)
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"{origin}\n{body}" if lines else body


def split_target(spec: str) -> tuple[str, str]:
    """`onnx:int8` -> ("onnx", "int8"). Raises RecipeError."""
    target, _, precision = spec.partition(":")
    if target not in TARGETS:
        raise RecipeError(
            f"targets: unknown target {target!r} in {spec!r}{nearest(target, TARGETS)}",
            hint=f"known targets: {', '.join(TARGETS)}",
        )
    known = get_target(target).capabilities().precisions
    if precision not in known:
        raise RecipeError(
            f"targets: {target} has no precision {precision!r}{nearest(precision, known)}",
            hint=f"{target} has {', '.join(known)}",
        )
    return target, precision


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


def _lookup(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    node: Any = data
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def _check(recipe: Recipe) -> None:
    """Rules that a type cannot state."""

    def rule(ok: bool, key: str, value: object, says: str) -> None:
        if not ok:
            raise RecipeError(f"{key}: {value!r}: {says}")

    rule(bool(recipe.model), "model", recipe.model, "a recipe needs a model")
    rule(bool(recipe.targets), "targets", recipe.targets, "at least one TARGET:PRECISION is needed")
    rule(
        len(set(recipe.targets)) == len(recipe.targets), "targets", recipe.targets,
        "a target stands twice",
    )  # fmt: skip
    for spec in recipe.targets:
        split_target(spec)
    for spec in recipe.verify.limits:
        rule(spec in recipe.targets, "verify.limits", spec, "is not among the targets")
    for where, limits in (("verify", recipe.verify), *recipe.verify.limits.items()):
        for name in ("min_agreement", "max_drop", "max_kl", "min_cosine"):
            value = getattr(limits, name)
            most = math.inf if name == "max_kl" else 1.0
            rule(
                value is None or 0 <= value <= most, f"{where}.{name}", value,
                "must be 0 or more" if name == "max_kl" else "must be 0 to 1",
            )  # fmt: skip
    d, t, lo, q = recipe.data, recipe.train, recipe.lora, recipe.quantize
    rule(4 <= recipe.max_tokens <= 65536, "max_tokens", recipe.max_tokens, "must be 4 to 65536")
    rule(0 <= recipe.seed < 2**32, "seed", recipe.seed, "must be 0 to 4294967295")
    rule(recipe.release >= 1, "release", recipe.release, "must be at least 1")
    rule(recipe.threads is None or recipe.threads >= 1, "threads", recipe.threads, "must be >= 1")
    rule(0 < recipe.threshold < 1, "threshold", recipe.threshold, "must lie between 0 and 1")
    rule(0 < d.eval_fraction < 1, "data.eval_fraction", d.eval_fraction, "must lie between 0 and 1")
    rule(0 < t.epochs < math.inf, "train.epochs", t.epochs, "must be above 0, and a number")
    rule(t.batch_size >= 1, "train.batch_size", t.batch_size, "must be at least 1")
    rule(
        t.learning_rate is None or 0 < t.learning_rate < 1, "train.learning_rate",
        t.learning_rate, "must lie between 0 and 1",
    )  # fmt: skip
    rule(0 <= t.warmup < 1, "train.warmup", t.warmup, "must be 0 or more and under 1")
    rule(0 <= t.weight_decay < math.inf, "train.weight_decay", t.weight_decay, "must be 0 or more")
    rule(t.early_stop >= 0, "train.early_stop", t.early_stop, "must be 0 or more")
    rule(lo.rank >= 1, "lora.rank", lo.rank, "must be at least 1")
    rule(lo.alpha is None or lo.alpha >= 1, "lora.alpha", lo.alpha, "must be at least 1")
    rule(0 <= lo.dropout < 1, "lora.dropout", lo.dropout, "must be 0 or more and under 1")
    rule(
        q.calibration_texts >= 1, "quantize.calibration_texts", q.calibration_texts, "must be >= 1"
    )
    rule(
        not (recipe.task == "feature-extraction" and t.method in ("lora", "full")),
        "train.method", t.method, "embeddings are compiled as they are: fine-tune before",
    )  # fmt: skip


__all__ = ["Leaf", "Recipe", "dump_recipe", "leaves", "load_recipe", "split_target"]
