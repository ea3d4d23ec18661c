"""The pass that computes the importance matrix: from which texts, for which variants, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_chat import chat_rows, make_chat_model
from tiny_data import labelled_rows, write_csv, write_jsonl

import edgelm
from edgelm.compiler import Recipe, load_recipe
from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_tokenizer
from edgelm.compiler.passes.imatrix import calibration_tokens
from edgelm.compiler.passes.lower import check_target
from edgelm.compiler.pipeline import plan
from edgelm.runtime.errors import DataError, ModelError, RecipeError
from edgelm.runtime.progress import Progress
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.imatrix import read_imatrix
from edgelm.targets.gguf.precisions import TENSOR_TYPES

NUMBERS = {kind: name for name, kind in TENSOR_TYPES.items()}
TEXT = "the quick brown fox\n\nwhere is my parcel, i ordered it twelve days ago\n" * 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imatrix")
    tiny.make_model(root / "encoder")
    make_chat_model(root / "decoder")
    write_csv(root / "train.csv", labelled_rows(20))
    write_csv(root / "eval.csv", labelled_rows(4, start=50))
    write_jsonl(root / "train.jsonl", chat_rows(24))
    write_jsonl(root / "eval.jsonl", chat_rows(6, start=100))
    (root / "text.txt").write_text(TEXT, encoding="utf-8-sig")
    return root


def recipe_of(root: Path, *targets: str, decoder: bool = False, **changed: Any) -> Recipe:
    ending = "jsonl" if decoder else "csv"
    keys = {
        "model": str(root / ("decoder" if decoder else "encoder")),
        "task": "text-generation" if decoder else "text-classification",
        "cache_dir": str(root / "cache"),
        "targets": list(targets),
        "threads": 1,
        "data.train": str(root / f"train.{ending}"),
        "data.eval": str(root / f"eval.{ending}"),
        "max_tokens": 64,
        "train.method": "none",
        "recover.method": "none",
        "verify.eval_tokens": 20,
        "verify.eval_answers": 1,
    }
    return load_recipe(None, keys | {k.replace("__", "."): v for k, v in changed.items()})


def lowered(recipe: Recipe) -> Context:
    """The context behind the last variant's lowering; nothing is verified."""
    for spec in recipe.targets:
        check_target(recipe, spec)
    context = Context(recipe, StageCache(Path(str(recipe.cache_dir))), Progress("quiet"))
    for step in plan(recipe, None):  # type: ignore[arg-type]
        if step.name == "gate":
            break
        if not step.name.startswith("verify"):
            step.execute(context)
    return context


def types_of(context: Context, variant: str) -> dict[str, str]:
    path = context.variants[variant].folder / "variants" / variant / "model.gguf"
    return {name: NUMBERS[t.type] for name, t in read_header(path).tensors.items()}


@pytest.mark.parametrize("decoder", [False, True])
def test_once_for_all_variants_that_gain(decoder, root):
    targets = ("gguf:q4_k_m", "gguf:q8_0", "gguf:iq2_xs", "gguf:f16")
    first = lowered(recipe_of(root, *targets, decoder=decoder))
    assert first.imatrix is not None
    assert len([n for n in first.digests if n == "imatrix"]) == 1
    found = read_imatrix(first.imatrix)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    assert set(found.sums) >= {f"blk.{i}.{part}.weight" for i in range(2) for part in parts}
    again = lowered(recipe_of(root, *targets, decoder=decoder))
    assert again.digests == first.digests
    for changed in (
        {"quantize__imatrix": "none"},
        {"quantize__imatrix_tokens": 50},
        {"quantize__calibration_file": str(root / "text.txt")},
        {"quantize__imatrix": str(first.imatrix)},
    ):
        some = [t for t in targets if t != "gguf:iq2_xs"]  # which is not to be had without one
        other = lowered(recipe_of(root, *some, decoder=decoder, **changed))
        assert other.digests["lower gguf-q4_k_m"] != first.digests["lower gguf-q4_k_m"]
        assert other.digests["lower gguf-f16"] == first.digests["lower gguf-f16"]


@pytest.mark.parametrize("decoder", [False, True])
def test_about_as_many_tokens_as_asked_for(decoder, root):
    counts = []
    for n in (40, 200):
        context = lowered(recipe_of(root, "gguf:q4_0", decoder=decoder, quantize__imatrix_tokens=n))
        assert context.imatrix is not None
        (count,) = set(read_imatrix(context.imatrix).counts.values())
        counts.append(count)
        assert n <= count < n + 64
        rows = calibration_tokens(context).rows
        assert sum(map(len, rows)) == count
    assert counts[0] < counts[1]


def test_conversations_are_looked_at_as_the_model_reads_them(root):
    context = lowered(recipe_of(root, "gguf:q4_0", decoder=True))
    assert context.model_dir and context.chat
    tokenizer = load_tokenizer(context.model_dir, padded=False)
    got = {tokenizer.decode(row) for row in calibration_tokens(context).rows}
    expected = {
        tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:64])
        for text in (
            tokenizer.apply_chat_template(list(row.messages), tokenize=False)
            for row in context.chat.train
        )
    }
    assert got == expected


def test_a_text_file_takes_the_place_of_training_texts(root):
    file = str(root / "text.txt")
    for decoder in (False, True):
        recipe = recipe_of(
            root, "gguf:iq2_s", decoder=decoder, data__train=None,
            quantize__calibration_file=file, quantize__imatrix_tokens=150,
        )  # fmt: skip
        context = lowered(recipe)
        assert context.imatrix is not None and not context.notes[1:]
        rows = calibration_tokens(context).rows
        assert context.model_dir is not None
        tokenizer = load_tokenizer(context.model_dir, padded=False)
        assert all(len(row) <= 64 for row in rows)
        if decoder:
            whole = tokenizer(TEXT)["input_ids"]
            assert rows[0] == whole[:64] and rows[1][1:] == whole[65:128] and len(rows) == 3
        else:
            assert rows[:2] == [tokenizer(line)["input_ids"] for line in TEXT.splitlines()[:3:2]]


def test_single_tensors_types_come_from_the_recipe(root):
    types = {"blk\\.0\\.ffn_down": "q8_0"}
    context = lowered(recipe_of(root, "gguf:q4_0", quantize__tensor_types=types))
    got = types_of(context, "gguf-q4_0")
    assert got["blk.0.ffn_down.weight"] == "q8_0" and got["blk.1.ffn_down.weight"] == "q4_0"
    with pytest.raises(ModelError, match="'fnn' is in no name"):
        lowered(recipe_of(root, "gguf:q4_0", quantize__tensor_types={"fnn": "q8_0"}))


def test_pairs_and_their_types(root, tmp_path):
    rows = [(t, labelled_rows(8)[-i][0], label) for i, (t, label) in enumerate(labelled_rows(8))]
    head = "sentence1,sentence2,label"
    train = write_csv(tmp_path / "train.csv", rows[4:], head)
    evaluation = write_csv(tmp_path / "eval.csv", rows[:4], head)
    context = lowered(
        recipe_of(root, "gguf:q4_0", data__train=str(train), data__eval=str(evaluation))
    )
    assert context.text is not None and context.text.type_ids
    tokens = calibration_tokens(context)
    assert tokens.type_rows is not None and max(map(max, tokens.type_rows)) == 1
    assert context.imatrix is not None
    sums = read_imatrix(context.imatrix).sums["blk.0.attn_q.weight"]
    assert np.isfinite(sums).all() and (sums > 0).all()


def test_without_texts_it_is_said_or_refused(root, tmp_path):
    context = lowered(recipe_of(root, "gguf:q4_0", "gguf:q8_0", data__train=None))
    assert context.imatrix is None
    (note,) = [n for n in context.notes if "importance matrix" in n]
    assert note.startswith("gguf-q4_0: quantized without an importance matrix")
    context = lowered(recipe_of(root, "gguf:q8_0", data__train=None))
    assert not [n for n in context.notes if "importance matrix" in n]
    context = lowered(recipe_of(root, "gguf:q4_0", quantize__imatrix="none"))
    assert not [n for n in context.notes if "importance matrix" in n]
    for changed in (
        {"data__train": None},
        {"quantize__imatrix": "none"},
        {"data__train": None, "quantize__tensor_types": {"ffn": "iq2_xs"}},
    ):
        spec = "gguf:q8_0" if "quantize__tensor_types" in changed else "gguf:iq1_s"
        with pytest.raises(RecipeError, match=f"{spec} cannot be made without") as err:
            check_target(recipe_of(root, spec, **changed), spec)
        assert "--calibration-file" in str(err.value.hint)
    for key in ("imatrix", "calibration_file"):
        recipe = recipe_of(root, "gguf:q4_0", **{f"quantize__{key}": str(tmp_path / "none.gguf")})
        with pytest.raises(RecipeError, match=rf"quantize\.{key}: .*: no such file"):
            check_target(recipe, "gguf:q4_0")
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"broken\.txt: not an importance matrix"):
        lowered(recipe_of(root, "gguf:q4_0", quantize__imatrix=str(broken)))
    broken.write_bytes(b"a text\nan\xff\n")
    with pytest.raises(DataError, match=r"broken\.txt, row 2: byte 0xff .* is not UTF-8"):
        lowered(recipe_of(root, "gguf:q4_0", quantize__calibration_file=str(broken)))
    broken.write_text("\n\n")
    with pytest.raises(DataError, match="no text to compute"):
        lowered(recipe_of(root, "gguf:q4_0", quantize__calibration_file=str(broken)))


def test_a_bundle_tells_of_it(compile_tiny, root):
    path = compile_tiny(
        "imatrix",
        train__method="none",
        data__train=str(root / "train.csv"),
        data__eval=str(root / "eval.csv"),
        targets=["gguf:q4_0"],
        verify__min_agreement=0.0,
        verify__max_kl=10.0,
        verify__max_drop=1.0,
    )
    with edgelm.load(path, threads=1) as model:
        assert model.predict(["i lost my card"])
        assert "imatrix" in model.manifest.provenance["stages"]
