"""The precision auto end to end: sizes, types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_decoders
from tiny_chat import chat_rows
from tiny_data import labelled_rows, write_csv, write_jsonl

import edgelm
from edgelm.compiler import Recipe, compile, load_recipe
from edgelm.runtime.errors import BudgetError, RecipeError
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.rounding.file import kind_of

MIXED = dict(intermediate_size=256, num_hidden_layers=2)  # types of 32 and of 256


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auto")
    tiny.make_model(root / "encoder")
    tiny_decoders.make_decoder(root / "decoder", "llama", **MIXED)
    write_csv(root / "train.csv", labelled_rows(20))
    write_csv(root / "eval.csv", labelled_rows(4, start=50))
    write_jsonl(root / "train.jsonl", chat_rows(24))
    write_jsonl(root / "eval.jsonl", chat_rows(6, start=100))
    return root


def recipe_of(root: Path, task: str, max_size: str, **changed: Any) -> Recipe:
    decodes = task == "text-generation"
    ending = "jsonl" if decodes else "csv"
    keys = {
        "model": str(root / ("decoder" if decodes else "encoder")),
        "task": task,
        "output": str(root / f"{task}.edgelm"),
        "cache_dir": str(root / "cache"),
        "targets": ["gguf:auto"],
        "threads": 1,
        "data.train": str(root / f"train.{ending}"),
        "data.eval": str(root / f"eval.{ending}"),
        "max_tokens": 64,
        "train.method": "none",
        "quantize.auto_size": max_size,
        "verify.eval_tokens": 20,
        "verify.eval_answers": 1,
        "verify.min_agreement": 0.0,
        "verify.max_kl": 10.0,
        "verify.max_kl_p999": 100.0,
        "verify.max_perplexity_ratio": 10.0,
        "verify.max_drop": 1.0,
        "verify.min_cosine": 0.0,
    }
    return load_recipe(None, keys | {k.replace("__", "."): v for k, v in changed.items()})


def least_size(root: Path, task: str, **changed: Any) -> int:
    """Bytes of the smallest file, as the refusal of a smaller one says."""
    size = "1KB"
    for says in ("alone take at least ", "smallest file of this model takes "):
        with pytest.raises(RecipeError, match=says) as caught:
            compile(recipe_of(root, task, size, **changed))
        found = int(caught.value.message.split(says)[1].split()[0].replace(",", ""))
        size = f"{found}B"
    return found


@pytest.mark.parametrize("task", ["text-generation", "text-classification", "feature-extraction"])
def test_the_file_keeps_to_the_size_and_a_larger_one_loses_less(root: Path, task: str) -> None:
    least = least_size(root, task)
    lost: list[float] = []
    for size in (least, least * 3 // 2):
        report = compile(recipe_of(root, task, f"{size}B"))
        variant = report.manifest.variants[0]
        path = report.path / variant.files[0].path
        assert path.stat().st_size <= size and variant.size_bytes <= size
        if size == least:
            assert variant.size_bytes == size
        tensors = read_header(path).tensors
        assert variant.types
        assert {name: kind_of(tensors[name]) for name in variant.types} == variant.types
        parity = variant.parity
        assert parity is not None
        lost.append(parity.kl_divergence if parity.mean_cosine is None else 1 - parity.mean_cosine)
        assert edgelm.load(report.path).predict("where is my parcel")
        assert "gguf-auto" in report.report_path.read_text(encoding="utf-8")
    assert lost[1] < lost[0]


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_onnx_files_keep_to_the_size_and_a_larger_one_loses_less(root: Path, task: str) -> None:
    least = least_size(root, task, targets=["onnx:auto"])
    lost: list[float] = []
    for size in (least, least * 3 // 2):
        report = compile(recipe_of(root, task, f"{size}B", targets=["onnx:auto"]))
        (variant,) = report.manifest.variants
        assert (report.path / variant.files[0].path).stat().st_size <= size
        assert variant.size_bytes <= size
        assert set(variant.types.values()) <= {"int4", "int8", "int8-blocks", "float32"}
        assert any(name.endswith("attention.output.dense.weight") for name in variant.types)
        parity = variant.parity
        assert parity is not None
        lost.append(parity.kl_divergence if parity.mean_cosine is None else 1 - parity.mean_cosine)
        assert edgelm.load(report.path).predict("where is my parcel")
    assert lost[1] < lost[0]


def test_both_targets_keep_to_the_size_in_one_bundle(root: Path) -> None:
    task = "text-classification"
    least = least_size(root, task, targets=["onnx:auto"])
    both = ["onnx:auto", "gguf:auto"]
    report = compile(recipe_of(root, task, f"{2 * least}B", targets=both))
    onnx, gguf = report.manifest.variants
    assert onnx.types.keys().isdisjoint(gguf.types)
    assert max(onnx.size_bytes, gguf.size_bytes) <= 2 * least


def test_onnx_auto_of_a_decoder_is_refused_before_anything_is_trained(root: Path) -> None:
    decoder = {"model": str(root / "decoder"), "pooling": "mean", "targets": ["onnx:auto"]}
    with pytest.raises(RecipeError, match=r"onnx:auto is for encoders, and .* is a decoder"):
        compile(recipe_of(root, "feature-extraction", "90MB", **decoder))
    with pytest.raises(RecipeError, match="onnx has no precision 'auto' for text-generation"):
        compile(recipe_of(root, "text-generation", "90MB", targets=["onnx:auto"]))


@pytest.mark.parametrize("target", ["onnx:auto", "gguf:auto"])
def test_a_size_that_is_too_small_for_sure_is_refused_before_training(
    root: Path, tmp_path: Path, target: str
) -> None:
    trained = {"targets": [target], "train.method": "lora", "cache_dir": str(tmp_path)}
    with pytest.raises(RecipeError, match="alone take at least"):
        compile(recipe_of(root, "text-classification", "1KB", **trained))
    assert not list(tmp_path.rglob("*finetune*"))


@pytest.mark.parametrize("target", ["gguf:auto", "onnx:auto"])
def test_in_a_search_the_files_keep_to_the_budgets_size(root: Path, target: str) -> None:
    task = "text-classification"
    least = least_size(root, task, targets=[target])

    def searched(n_bytes: int) -> Recipe:
        size = {"budget.max_size": f"{n_bytes}B", "quantize.auto_size": None, "budget.vary": []}
        size["targets"] = [target]
        return recipe_of(root, task, "", **size)

    report = compile(searched(2 * least))
    (variant,) = report.manifest.variants
    assert variant.precision == "auto"
    assert least < variant.size_bytes <= 2 * least
    with pytest.raises(BudgetError, match="no point meets the budget"):
        compile(searched(least - 1))


def test_stated_types_are_kept(root: Path) -> None:
    task = "text-classification"
    least = least_size(root, task)
    stated = {"quantize.tensor_types": {"ffn_down": "q8_0"}}
    report = compile(recipe_of(root, task, f"{2 * least}B", **stated))
    types = report.manifest.variants[0].types
    assert {kind for name, kind in types.items() if "ffn_down" in name} == {"q8_0"}
    narrowed = {**stated, "quantize.auto_types": ["iq4_nl", "q5_0"]}
    report = compile(recipe_of(root, task, f"{2 * least}B", **narrowed))
    assert set(report.manifest.variants[0].types.values()) == {"q8_0", "q5_0"}
    with pytest.raises(RecipeError, match=r"none of q2_k is for .*\.weight"):
        compile(recipe_of(root, task, "90MB", **{"quantize.auto_types": ["q2_k"]}))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"quantize.auto_size": None}, "is needed for gguf:auto"),
        ({"quantize.auto_size": "90 apples"}, "unknown unit 'apples'"),
        ({"targets": ["gguf:q8_0"]}, "is for the targets gguf:auto and onnx:auto"),
        ({"targets": ["onnx:auto"], "quantize.auto_size": None}, "is needed for onnx:auto"),
        ({"targets": ["onnx:auto"], "data.train": None}, "needs texts to find out what errors"),
        (
            {"targets": ["onnx:auto"], "quantize.auto_types": ["q8_0"]},
            "quantize.auto_types: .* is for the target gguf:auto",
        ),
        ({"data.train": None}, "needs texts to find out what errors cost"),
        ({"gguf.converter": "."}, "cannot be made of a file that llama.cpp's own script writes"),
        ({"gguf.split_size_mb": 2}, "cannot be made over several files"),
        ({"prune.sparsity": 0.5}, "cannot be made of weights set to zero"),
        ({"prune.heads": 1.0}, "cannot be made of heads left out"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    root: Path, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        compile(recipe_of(root, "text-classification", "90MB", **changed))
