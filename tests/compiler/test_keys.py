"""Each key of the recipe is in the key of a stage that it decides, or is known to decide none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_chat
import tiny_data

from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context, VariantState
from edgelm.compiler.options import leaves
from edgelm.compiler.passes.lower import Lower
from edgelm.compiler.pipeline import steps
from edgelm.compiler.recipe import Recipe, load_recipe
from edgelm.compiler.tune.points import is_kept
from edgelm.runtime.progress import Progress
from edgelm.targets.base import Lowered

Values = dict[str, Any]

LORA = {"train.method": "lora"}
SMALLER = {"prune.layers": 1}
SPARSE = {"prune.sparsity": 0.5}
STATIC = {"targets": ["onnx:int8-static"]}
FOUR_BITS = {"targets": ["gguf:q4_0"]}
TRAINED = {"targets": ["onnx:int4"], "recover.method": "train"}
CHAT = {"task": "text-generation", "model": "CHAT", "data.train": "CHATS"}
VECTORS = {"task": "feature-extraction", "model": "BARE", "data.label": "score"}

# key -> another value of it, and what else the recipe says for it to matter; capitals are files
DECIDING: dict[str, tuple[Any, Values]] = {
    "model": ("OTHER", {}),
    "task": ("feature-extraction", {"data.label": "score"}),
    "targets": (["onnx:fp32"], {}),
    "adapter": ("ADAPTER", CHAT),
    "max_tokens": (32, {}),
    "pooling": ("cls", VECTORS),
    "normalize": (False, {**VECTORS, "normalize": True}),
    "threshold": (0.4, {}),
    "seed": (1, {}),
    "threads": (1, {"threads": 2}),
    "data.train": ("MORE", {}),
    "data.eval": ("MORE", {}),
    "data.text": ("second", {"data.text": "text"}),
    "data.pair": ("second", {"data.text": "text"}),
    "data.label": ("labels", {}),
    "data.multi_label": (True, {}),
    "data.label_separator": ("|", {"data.label": "labels", "data.multi_label": True}),
    "data.eval_fraction": (0.3, {}),
    "data.kind": ("text", CHAT),
    "train.method": ("full", {}),
    "train.epochs": (2.0, {}),
    "train.batch_size": (4, {}),
    "train.gradient_accumulation": (2, {}),
    "train.gradient_checkpointing": (True, {}),
    "train.packing": (False, CHAT),
    "train.learning_rate": (1e-3, {}),
    "train.warmup": (0.1, {}),
    "train.weight_decay": (0.1, {}),
    "train.early_stop": (1, {}),
    "train.precision": ("bf16", {}),
    "train.class_weights": ("balanced", {}),
    "lora.rank": (4, LORA),
    "lora.alpha": (4, LORA),
    "lora.dropout": (0.2, LORA),
    "lora.targets": (["query"], LORA),
    "prune.vocab": (True, {}),
    "prune.vocab_size": (20, {"prune.vocab": True}),
    "prune.vocab_texts": ("TEXTS", {"prune.vocab": True}),
    "prune.sparsity": (0.5, {}),
    "prune.pattern": ("2:4", SPARSE),
    "prune.method": ("magnitude", SPARSE),
    "prune.layers": (1, {}),
    "prune.layer_choice": ("measured", SMALLER),
    "prune.heads": (0.5, {}),
    "prune.ffn": (0.5, {}),
    "distil.student": ("OTHER", {}),
    "distil.unlabelled": ("TEXTS", SMALLER),
    "distil.epochs": (2.0, SMALLER),
    "distil.learning_rate": (1e-3, SMALLER),
    "distil.temperature": (3.0, SMALLER),
    "distil.direction": ("reverse", {**CHAT, **SMALLER}),
    "distil.samples": (0.5, {**CHAT, **SMALLER}),
    "distil.label_weight": (0.1, SMALLER),
    "distil.hidden_weight": (0.1, SMALLER),
    "distil.relation_weight": (1.0, SMALLER),
    "distil.steps": (2, SMALLER),
    "quantize.calibration": ("entropy", STATIC),
    "quantize.calibration_texts": (8, STATIC),
    "quantize.smooth": (0.5, {}),
    "quantize.device": ("vnni", {}),
    "quantize.imatrix": ("none", FOUR_BITS),
    "quantize.imatrix_tokens": (100, FOUR_BITS),
    "quantize.calibration_file": ("TEXTS", FOUR_BITS),
    "quantize.tensor_types": ({"attn": "q6_k"}, {}),
    "recover.method": ("none", FOUR_BITS),
    "recover.epochs": (2.0, TRAINED),
    "recover.batch_size": (4, TRAINED),
    "recover.learning_rate": (1e-3, TRAINED),
    "recover.rounding_tokens": (100, TRAINED),
    "gguf.converter": ("SCRIPT", {}),
    "gguf.split_size_mb": (1, {}),
    "verify.eval_tokens": (100, CHAT),
    "verify.eval_answers": (1, CHAT),
    "measure.batch": (2, {}),
    "measure.tokens": (8, {}),
}

OF_BUNDLE = "of the bundle, not of the models in it"
LIMIT = "a limit, which is held to when a stage is loaded"
SEARCH = "of the search, which comes to recipes without it"
# key -> another value of it, and why it decides no stage
UNDECIDING: dict[str, tuple[Any, str]] = {
    "output": ("b.edgelm", OF_BUNDLE),
    "name": ("b", OF_BUNDLE),
    "version": ("2.0.0", OF_BUNDLE),
    "release": (2, OF_BUNDLE),
    "revision": ("main", "names files of a hub, whose digest is in the keys"),
    "cache_dir": ("cache", "says where stages are"),
    "distil.max_drop": (0.5, LIMIT),
    "quantize.auto_size": ("9MB", "chooses types, which are in the keys"),
    "quantize.auto_types": (["q6_k"], "restricts types, which are in the keys"),
    "verify.min_agreement": (0.5, LIMIT),
    "verify.max_drop": (0.5, LIMIT),
    "verify.max_kl": (0.5, LIMIT),
    "verify.min_cosine": (0.5, LIMIT),
    "verify.max_kl_p999": (0.5, LIMIT),
    "verify.max_perplexity_ratio": (2.0, LIMIT),
    "verify.min_gain_kept": (0.5, LIMIT),
    "verify.limits": ({"onnx:int8": {"max_drop": 0.5}}, LIMIT),
    "budget.max_size": ("9MB", SEARCH),
    "budget.max_latency": ("9ms", SEARCH),
    "budget.max_memory": ("9MB", SEARCH),
    "budget.max_drop": (1.0, SEARCH),
    "budget.min_metric": (0.5, SEARCH),
    "budget.vary": (["targets"], SEARCH),
    "budget.time_budget": ("9m", SEARCH),
    "budget.halving": (2, SEARCH),
    "budget.device_profile": ("profile.json", SEARCH),
    "budget.study": ("journal.log", SEARCH),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the names that the tables have for them."""
    root = tmp_path_factory.mktemp("keys")
    columns = "text,second,label,labels,score"
    rows = [
        (t, f"{t} again", kind, f"{kind};{t[0]}", f"0.{len(t)}")
        for t, kind in tiny_data.labelled_rows()
    ]
    chats = [{**row, "text": f"plain {i}"} for i, row in enumerate(tiny_chat.chat_rows(12))]
    texts = root / "texts.txt"
    texts.write_text("\n".join(text for text, *_ in rows), encoding="utf-8")
    adapter, script = root / "adapter", root / "convert_hf_to_gguf.py"
    adapter.mkdir()
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
    ):  # their bytes alone count here
        (adapter / name).write_text('{"peft_type": "LORA"}', encoding="utf-8")
    script.write_text("", encoding="utf-8")
    return {
        "MODEL": tiny.make_model(root / "model"),
        "OTHER": tiny.make_model(root / "other", seed=1),
        "BARE": tiny.make_model(root / "bare", labels=None),
        "CHAT": tiny_chat.make_chat_model(root / "chat"),
        "ROWS": tiny_data.write_csv(root / "rows.csv", rows, columns),
        "MORE": tiny_data.write_csv(
            root / "more.csv", [(f"{t} more", *rest) for t, *rest in rows], columns
        ),
        "CHATS": tiny_data.write_jsonl(root / "chats.jsonl", chats),
        "TEXTS": texts,
        "ADAPTER": adapter,
        "SCRIPT": script,
    }


def stage_keys(files: dict[str, Path], values: Values) -> dict[str, str]:
    """Of each pass that keeps a stage; nothing is trained or made."""
    stated = {"model": "MODEL", "data.train": "ROWS", "data.label": "label"} | values
    if stated.get("task") == "text-generation":
        del stated["data.label"]
    named = {k: str(files.get(v, v)) if isinstance(v, str) else v for k, v in stated.items()}
    context = Context(
        load_recipe(None, named), StageCache(files["MODEL"].parent / "cache"), Progress("quiet")
    )
    for step in steps(context.recipe).all:
        inputs = step.inputs(context)
        if inputs is None:
            assert is_kept(step, context)
            step.load(context, Path())
            continue
        key = context.digests[step.name] = context.cache.key(step.name, step.version, inputs)
        assert context.source is not None
        if step.name == "trim":
            context.source = replace(context.source, digest=key)
        elif step.name in ("merge", "shrink", "sparsify"):
            context.model_dir, context.model_key = context.source.folder, key
        elif isinstance(step, Lower):
            made = VariantState(step.variant, step.target, step.precision, Path(), Lowered((), {}))
            context.variants[step.variant] = made
    return context.digests


def test_every_key_is_in_a_table() -> None:
    assert not DECIDING.keys() & UNDECIDING.keys()
    assert DECIDING.keys() | UNDECIDING.keys() == {leaf.key for leaf in leaves(Recipe)}


@pytest.mark.parametrize("key", DECIDING)
def test_what_decides_a_stage_is_in_its_key(key: str, files: dict[str, Path]) -> None:
    value, rest = DECIDING[key]
    assert stage_keys(files, rest) != stage_keys(files, {**rest, key: value})


@pytest.mark.parametrize("key", UNDECIDING)
def test_what_decides_none_is_in_no_key(key: str, files: dict[str, Path]) -> None:
    value, _ = UNDECIDING[key]
    assert stage_keys(files, {}) == stage_keys(files, {key: value})


def test_the_version_of_a_pass_makes_its_stage_and_those_behind_anew(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage_keys(files, FOUR_BITS)
    monkeypatch.setattr(type(steps(load_recipe(None, {"model": "m"})).model[1]), "version", 2)
    after = stage_keys(files, FOUR_BITS)
    same = {name for name, key in before.items() if after[name] == key}
    assert same == {"finetune"}
