"""From a model and a file to a bundle that answers, for each kind of task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_data import labelled_rows, write_csv, write_jsonl

import edgelm
from edgelm.compiler import compile, load_recipe
from edgelm.compiler.data import Dataset, load_dataset
from edgelm.compiler.passes.finetune import _class_weights
from edgelm.compiler.sections import DataConfig
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.evaluate import evaluate
from edgelm.runtime.manifest import Task, read_manifest
from edgelm.runtime.metrics import cosine, spearman
from edgelm.runtime.verify import verify_files

BOTH = ["onnx:fp32", "gguf:f32"]


def test_label_sets(compile_tiny: Callable[..., Path], tmp_path: Path) -> None:
    words = {"card": "card_lost", "refund": "refund"}
    texts = ["i lost my card", "refund please", "refund my lost card", "hello you", "thanks"]
    rows = [
        {"text": f"{t} {i}", "labels": [label for word, label in words.items() if word in t]}
        for i in range(8)
        for t in texts
    ]
    path = compile_tiny(
        "multi",
        model={"labels": None},
        data__train=str(write_jsonl(tmp_path / "train.jsonl", rows[:30])),
        data__eval=str(write_jsonl(tmp_path / "eval.jsonl", rows[30:])),
        train__epochs=8.0,
        train__batch_size=8,
        train__learning_rate=0.02,
        targets=BOTH,
    )
    manifest = read_manifest(path)
    assert (manifest.task.problem, manifest.task.labels) == ("multi_label", ("card_lost", "refund"))
    assert manifest.reference["micro_f1"] > 0.9
    for variant in manifest.variants:
        with edgelm.load(path, variant=variant.name, threads=1) as model:
            answers = model.predict(["refund my lost card", "hello you"])
            found = evaluate(model, tmp_path / "eval.jsonl").metrics
        assert isinstance(answers[0], edgelm.LabelSet)
        assert set(answers[0].labels) == {"card_lost", "refund"}
        assert isinstance(answers[1], edgelm.LabelSet)
        assert answers[1].labels == ()
        assert found["micro_f1"] == pytest.approx(variant.metrics["micro_f1"], abs=1e-6)


@pytest.fixture(scope="module")
def pair_bundle(compile_tiny: Callable[..., Path], tmp_path_factory) -> Path:
    rows = [(t, labelled_rows(8)[-i][0], label) for i, (t, label) in enumerate(labelled_rows(8))]
    data = tmp_path_factory.mktemp("pairs") / "eval.csv"
    write_csv(data, rows, "sentence1,sentence2,label")
    return compile_tiny("pair", train__method="none", data__eval=str(data), targets=BOTH)


def test_pairs_keep_their_sides(pair_bundle: Path) -> None:
    manifest = read_manifest(pair_bundle)
    assert manifest.task.pair is True
    assert manifest.text.type_ids is True
    a, b = "i lost my card", "please refund the order " * 20
    scores = []
    for variant in manifest.variants:
        with edgelm.load(pair_bundle, variant=variant.name, threads=1) as model:
            answers = model.predict([(a, b), (b, a), (a, a)], all_scores=True)
            for wrong in ("one text", [a, b], [(a, b, a)], [(a, None)]):
                with pytest.raises(edgelm.InputError, match="a pair of texts is needed"):
                    model.predict(wrong)  # type: ignore[arg-type]
        assert [x.truncated for x in answers] == [True, True, False]
        scores.append([list((x.scores or {}).values()) for x in answers])  # type: ignore[union-attr]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert abs(scores[0][0][0] - scores[0][1][0]) > 5e-3  # the sides are told apart


def test_pairs_on_the_command_line(run_cli, pair_bundle: Path, tmp_path: Path) -> None:
    fast = ("--variant", "onnx-fp32", "--threads", "1")
    (by_args,) = run_cli("predict", pair_bundle, "my card", "the order", *fast).rows
    (by_stdin,) = run_cli("predict", pair_bundle, *fast, stdin=b"my card\tthe order\n").rows
    path = write_csv(tmp_path / "p.csv", [("my card", "the order")], "text,text_pair")
    (by_file,) = run_cli("predict", pair_bundle, "-f", path, *fast).rows
    assert by_stdin == {"row": 1, **by_args}
    assert by_file == {"row": 2, **by_args}
    odd = run_cli("predict", pair_bundle, "a", "b", "c", *fast)
    assert (odd.code, odd.out) == (2, "")
    assert "two by two" in odd.err
    single = write_csv(tmp_path / "s.csv", [("my card", "other")])
    for args in (("predict", pair_bundle, "-f", single), ("eval", pair_bundle, "--data", single)):
        run = run_cli(*args, *fast)
        assert (run.code, run.out) == (2, "")
        assert "--pair-column" in run.err


def test_embeddings_with_scores(compile_tiny: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [
        (text, " ".join(tiny.WORDS[2 * i : 2 * i + 3]), str(i % 5 / 4))
        for i, (text, _) in enumerate(labelled_rows(6))
    ]
    data = write_csv(tmp_path / "pairs.csv", pairs, "text,text_pair,score")
    path = compile_tiny(
        "scored",
        model={"labels": None},
        task="feature-extraction",
        data__eval=str(data),
        targets=BOTH,
    )
    manifest = read_manifest(path)
    with edgelm.load(path, variant="onnx-fp32", threads=1) as model:
        sides = [[model.predict(t).vector for t, _, _ in pairs]]  # type: ignore[union-attr]
        sides.append([model.predict(t).vector for _, t, _ in pairs])  # type: ignore[union-attr]
        found = evaluate(model, data).metrics["spearman"]
    similarity = cosine(*(np.stack(side) for side in sides))
    expected = spearman(np.array([float(s) for _, _, s in pairs]), similarity)
    assert manifest.reference["spearman"] == pytest.approx(expected, abs=1e-3)
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_models_own_labels_in_any_case_or_by_number(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [(f"text {i}", ("CARD_LOST", "1", "Other")[i % 3]) for i in range(9)]
    data = write_csv(tmp_path / "eval.csv", rows)
    keys = {"train__method": "none", "data__eval": str(data), "targets": ["gguf:f32"]}
    manifest = read_manifest(compile_tiny("own", **keys))
    assert manifest.task.labels == ("card_lost", "refund", "other")
    write_csv(data, [*rows, ("text", "refunds")])
    with pytest.raises(edgelm.DataError, match=r"row 11: .*'refunds' \(did you mean 'refund'\?\)"):
        compile_tiny("own2", **keys)


def test_an_output_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "chapter1.tex").write_text("x")
    with pytest.raises(edgelm.StorageError, match="exists and is no bundle"):
        compile(load_recipe(None, {"model": str(tmp_path), "output": str(output)}))
    assert [p.name for p in output.iterdir()] == ["chapter1.tex"]


def test_what_a_bundle_holds(classifier: Path) -> None:
    bundle = Bundle(classifier)
    assert verify_files(bundle).ok
    top = {p.name for p in classifier.iterdir()}
    assert top == {
        "edgelm.json", "recipe.yaml", "report.html", "card.md", "tokenizer", "variants",
    }  # fmt: skip
    recipe = load_recipe(classifier / "recipe.yaml", {})
    assert recipe.targets == ["onnx:fp32", "onnx:int8", "gguf:f16"]
    manifest = bundle.manifest
    assert len(manifest.golden) == 8
    for variant in manifest.variants:
        assert len(variant.golden) == 8
        assert {len(row) for row in variant.golden} == {3}
        assert variant.parity is not None
        assert variant.measured is not None
        assert variant.engine
    sizes = {v.precision: v.size_bytes for v in manifest.variants}
    assert sizes["f16"] < sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]
    provenance = json.dumps(manifest.provenance)
    for part in ("model", "data", "torch", "lower gguf-f16"):
        assert part in provenance


def test_class_weights(tmp_path: Path) -> None:
    def weights(choice: str, labels: list[str], multi: bool = False) -> np.ndarray | None:
        rows = [
            {"text": f"t{i}", "label": x.split("+") if multi else x} for i, x in enumerate(labels)
        ]
        data = write_jsonl(tmp_path / "t.jsonl", rows)
        held_out = write_jsonl(tmp_path / "e.jsonl", [{**rows[0], "text": "other"}])
        dataset: Dataset = load_dataset(
            DataConfig(train=str(data), eval=str(held_out)),
            task="text-classification", trained=True, model_labels=None, seed=0,
        )  # fmt: skip
        recipe = load_recipe(None, {"model": "m", "train.class_weights": choice})
        task = Task("text-classification", dataset.labels, dataset.problem)
        return _class_weights(recipe, task, dataset)

    rare = ["a"] * 12 + ["b"] * 2
    assert weights("none", rare) is None
    assert weights("auto", ["a"] * 10 + ["b"] * 2) is None  # 5 x is not over 5 x
    np.testing.assert_allclose(weights("auto", rare), [14 / (2 * 12), 14 / (2 * 2)])
    np.testing.assert_allclose(weights("balanced", ["a", "b", "b"]), [3 / 2, 3 / 4])
    sets = ["a+b", "a", "a", "a+c", "a"]
    expected = np.clip(np.sqrt([0 / 5, 4 / 1, 4 / 1]), 1, 10)
    np.testing.assert_allclose(weights("balanced", sets, multi=True), expected)


def test_compile_from_the_command_line(run_cli, tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model")
    data = write_csv(tmp_path / "eval.csv", labelled_rows(4))
    args = ["compile", model, "--no-train", "--eval", data, "--target", "gguf:f32", "--threads", 1]
    args += ["-o", tmp_path / "b.edgelm", "--cache-dir", tmp_path / "cache"]
    run = run_cli(*args, "--log-json")
    assert run.code == 0, run.err
    assert "gguf-f32" in run.out
    assert str(tmp_path / "b.edgelm") in run.out
    events = [json.loads(line) for line in run.err.splitlines() if line.startswith("{")]
    assert [e["stage"] for e in events if e["event"] == "done"][-1] == "pack"
    run = run_cli(*args, "--json", "-q")
    assert (run.code, run.err) == (0, "")
    assert run.rows == [json.loads((tmp_path / "b.edgelm" / "edgelm.json").read_text())]
    run = run_cli(*args, "-q", "--max-kl", 0, "--min-agreement", 1, "--target", "gguf:q8_0")
    assert run.code == 4
    assert "error: verification failed, no bundle was written\n" in run.err
    assert "\ngguf-q8_0: mean KL divergence" in run.err
    assert "hint: use a higher precision instead of" in run.err
    assert run.out == ""
