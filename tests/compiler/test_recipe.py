"""One class tree is the defaults, the file, the flags, the checks and the documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from edgelm.__main__ import cli
from edgelm.compiler import docs
from edgelm.compiler.commands.compile import command, recipe_from
from edgelm.compiler.options import Leaf, choices, leaves, scalar
from edgelm.compiler.recipe import Recipe, dump_recipe, load_recipe
from edgelm.runtime.errors import RecipeError

SAMPLES = {  # of leaves that have rules
    "model": "m",
    "targets": ["gguf:q8_0"],
    "train.method": "full",
    "data.train": "t.csv",
    "prune.sparsity": 0.5,
    "quantize.auto_size": "90MB",
    "quantize.auto_types": ["q8_0", "q5_0"],
    "budget.max_size": "8MB",
    "budget.max_latency": "3ms",
    "budget.max_memory": "200 MiB",
    "budget.time_budget": "60m",
    "budget.vary": ["layers"],
}
NEEDS: dict[str, dict[str, Any]] = {  # without which a leaf is refused
    "adapter": {"task": "text-generation"},
    "data.kind": {"task": "text-generation"},
    "distil.direction": {"task": "text-generation"},
    "distil.samples": {"task": "text-generation"},
    "prune.vocab": {"data.train": "t.csv"},
    "prune.vocab_size": {"data.train": "t.csv", "prune.vocab": True},
    "prune.vocab_texts": {"prune.vocab": True},
    "prune.sparsity": {"data.train": "t.csv"},
    **{f"prune.{part}": {"data.train": "t.csv"} for part in ("layers", "heads", "ffn")},
    "quantize.smooth": {"data.train": "t.csv"},
    **{
        f"prune.{how}": {"data.train": "t.csv", "prune.sparsity": 0.5}
        for how in ("pattern", "method")
    },
    "distil.student": {"data.train": "t.csv"},
    "distil.unlabelled": {"prune.layers": 1.0},
}
FLAGS = {leaf.key: leaf.flag for leaf in leaves(Recipe)}
LEAVES = [leaf for leaf in leaves(Recipe) if leaf.key != "model" and not leaf.is_mapping]


def sample(leaf: Leaf) -> Any:
    """A value of the leaf's type that is not its default."""
    if leaf.key in SAMPLES:
        return SAMPLES[leaf.key]
    words = choices(leaf.type)
    if words:
        return next(w for w in reversed(words) if w != leaf.default)
    value = {str: "some text", int: 7, float: 0.125, bool: leaf.default is not True}[
        scalar(leaf.type)
    ]
    return [value] if leaf.many else value


def nested(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return found


def as_flags(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [FLAGS[key] if value else f"--no-{FLAGS[key][2:]}"]
    return [f"{FLAGS[key]}={v}" for v in (value if isinstance(value, list) else [value])]


def from_flags(*args: str) -> Recipe:
    """The recipe that `edgelm compile m …` states."""
    context = click.Context(command, **cli.context_settings)
    command.parse_args(context, ["m", *args])
    flags = dict(context.params)
    for name in ("as_json", "log_json", "quiet"):
        del flags[name]
    return recipe_from(flags.pop("model_or_recipe"), flags, flags.pop("no_train"))


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.key)
def test_a_file_and_the_command_line_give_equal_recipes(leaf: Leaf, tmp_path: Path) -> None:
    value = sample(leaf)
    path = tmp_path / "r.yaml"
    stated = {**NEEDS.get(leaf.key, {}), leaf.key: value}
    path.write_text(yaml.safe_dump(nested({"model": "m", **stated})))
    by_file = load_recipe(path, {})
    by_flag = from_flags(*(arg for key, v in stated.items() for arg in as_flags(key, v)))
    found: Any = by_file
    for part in leaf.path:
        found = getattr(found, part)
    assert found == value != leaf.default
    assert by_file == by_flag
    assert by_file.origins[leaf.key] == str(path)
    assert by_flag.origins[leaf.key] == "command line"
    others = {key for key, origin in by_file.origins.items() if origin != "default"}
    assert others == {"model", *stated}


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m\nseed: 3\ntrain: {epochs: 2, batch_size: 4}\ndata:\n  # all comments\n"
    )
    recipe = load_recipe(path, {"train.epochs": 5.0})
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch_size) == (3, 5.0, 4)
    origins = recipe.origins
    assert origins["train.epochs"] == "command line"
    assert origins["train.batch_size"] == str(path)
    assert origins["data.train"] == "default"


def test_no_train_and_repeated_targets() -> None:
    recipe = from_flags("--no-train", "--target=onnx:fp32", "--target", "gguf:f16")
    assert recipe.train.method == "none"
    assert recipe.targets == ["onnx:fp32", "gguf:f16"]
    assert from_flags("--no-multi-label").data.multi_label is False


WRONG = [
    ("model: m\nepochs: 3", "epochs: unknown key"),
    ("model: m\ntrain: {epoch: 3}", "train.epoch: unknown key (did you mean 'epochs'?)"),
    ("model: m\ntrain: {epochs: three}", "train.epochs: 'three' is not a number"),
    ("model: m\ntrain: {method: lorra}", "train.method: 'lorra' is none of auto, lora, full, none"),
    ("model: m\ntrain: [1]", "train: [1] is not a mapping"),
    ("model: m\ntask: poetry", "task: 'poetry' is none of"),
    ("model: 3", "model: 3 is not text"),
    ("seed: 3", "model: '': a recipe needs a model"),
    ("model: m\nmodel: n", "the key 'model' stands twice"),
    ("model: m\ntargets: []", "at least one TARGET:PRECISION"),
    ("model: m\ntargets: [onnx:int8, onnx:int8]", "a target stands twice"),
    ("model: m\ntargets: [onxn:int8]", "unknown target 'onxn' in 'onxn:int8' (did you mean 'onnx'"),
    ("model: m\ntargets: [gguf:q9_0]", "gguf has no precision 'q9_0' (did you mean"),
    ("model: m\nverify: {limits: {'onnx:fp32': {}}}", "'onnx:fp32': is not among the targets"),
    ("model: m\nverify: {limits: {'onnx:int8': {drop: 1}}}", "drop: unknown key"),
    ("model: m\nverify: {limits: {'onnx:int8': {max_drop: .nan}}}", "onnx:int8.max_drop: nan"),
    ("model: m\nverify: {min_agreement: 1.5}", "verify.min_agreement: 1.5: must be 0 to 1"),
    ("model: m\nverify: {max_kl: -1}", "verify.max_kl: -1.0: must be 0 or more"),
    ("model: m\nmax_tokens: 3", "max_tokens: 3: must be 4 to 65536"),
    ("model: m\nrelease: 0", "release: 0: must be at least 1"),
    ("model: m\nthreads: 0", "threads: 0: must be >= 1"),
    ("model: m\nthreshold: 1", "threshold: 1.0: must lie between 0 and 1"),
    ("model: m\ndata: {eval_fraction: 1}", "data.eval_fraction: 1.0: must lie between"),
    ("model: m\ntrain: {epochs: 0}", "train.epochs: 0.0: must be above 0"),
    ("model: m\ntrain: {epochs: .nan}", "train.epochs: nan: must be above 0"),
    ("model: m\ntrain: {epochs: .inf}", "train.epochs: inf: must be above 0"),
    ("model: m\ntrain: {batch_size: 0}", "train.batch_size: 0: must be at least 1"),
    ("model: m\ntrain: {learning_rate: 2}", "train.learning_rate: 2.0: must lie between"),
    ("model: m\ntrain: {warmup: 1}", "train.warmup: 1.0: must be"),
    ("model: m\ntrain: {early_stop: -1}", "train.early_stop: -1: must be 0 or more"),
    ("model: m\nlora: {rank: 0}", "lora.rank: 0: must be at least 1"),
    ("model: m\nlora: {alpha: 0}", "lora.alpha: 0: must be at least 1"),
    ("model: m\nlora: {dropout: 1}", "lora.dropout: 1.0: must be"),
    ("model: m\nquantize: {calibration_texts: 0}", "quantize.calibration_texts: 0: must be"),
    ("model: m\nquantize: {smooth: 2}", "quantize.smooth: 2.0: must be 0 to 1"),
    ("model: m\nquantize: {smooth: 0.5}", "quantize.smooth: 0.5: needs training texts"),
    ("model: m\nquantize: {imatrix_tokens: 0}", "quantize.imatrix_tokens: 0: must be"),
    ("model: m\nquantize: {tensor_types: {ffn: q6_kk}}", "types.ffn: 'q6_kk': is no tensor type"),
    ("model: m\nquantize: {tensor_types: {'ffn(': q6_k}}", "'ffn(': is no regular expression"),
    ("model: m\nquantize: {tensor_types: [q6_k]}", "quantize.tensor_types: ['q6_k'] is not a map"),
    ("model: m\ntask: feature-extraction\ntrain: {method: lora}", "embeddings are compiled as"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[w[0][9:] for w in WRONG])
def test_rules(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as err:
        load_recipe(path, {})
    assert says in err.value.message


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain: {learning_rate: 2e-3, epochs: 2E0}\nname: 1e\n")
    recipe = load_recipe(path, {})
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.name) == (0.002, 2.0, "1e")


def test_dump_loads_to_an_equal_recipe_and_tells_the_origins(tmp_path: Path) -> None:
    overrides = {leaf.key: sample(leaf) for leaf in LEAVES} | {"model": "我/m"}
    other_tasks = [key for key, needs in NEEDS.items() if "task" in needs]
    # which have no say with train.method, data.pair, prune.layers, …
    for key in ("task", "distil.student", *other_tasks):
        del overrides[key]
    overrides["quantize.tensor_types"] = {"ffn_(up|down)": "q6_k"}
    overrides["verify.limits"] = {"gguf:q8_0": {"max_drop": 1e-5}}
    recipe = load_recipe(None, overrides)
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path, {}) == recipe
    assert "# train.epochs: command line\n" in path.read_text(encoding="utf-8")
    plain = load_recipe(None, {"model": "m"})
    path.write_text(dump_recipe(plain), encoding="utf-8")
    assert load_recipe(path, {}) == plain


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """The part of JSON Schema that recipe_schema uses."""
    if "anyOf" in schema:
        return any(accepts(s, value) for s in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool,
             "null": type(None), "array": list, "object": dict}  # fmt: skip
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if isinstance(value, bool) and schema["type"] != "boolean":
        return False
    if isinstance(value, list):
        return all(accepts(schema["items"], item) for item in value)
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema["additionalProperties"]
        return all(k in value for k in schema.get("required", ())) and all(
            accepts(known[k], v) if k in known else rest is not False and accepts(rest, v)
            for k, v in value.items()
        )
    return True


def test_the_json_schema_takes_what_the_recipe_takes() -> None:
    schema = json.loads(docs.recipe_schema())
    starter = yaml.safe_load(docs.starter_recipe())
    assert accepts(schema, {k: v for k, v in starter.items() if v is not None})
    for leaf in LEAVES:
        assert accepts(schema, {"model": "m", **nested({leaf.key: sample(leaf)})}), leaf.key
    limits = {"verify": {"limits": {"onnx:int8": {"max_drop": 0.1}}}}
    assert accepts(schema, {"model": "m", **limits})
    for kind, fits in (("q6_k", True), (3, False)):
        types = {"quantize": {"tensor_types": {"ffn_down": kind}}}
        assert accepts(schema, {"model": "m", **types}) is fits
    for wrong in ({}, {"model": 3}, {"model": "m", "epochs": 1}, {"model": "m", "train": {"x": 1}}):
        assert not accepts(schema, wrong)


def test_generated_documents_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(check=True) == 0, capsys.readouterr().err
