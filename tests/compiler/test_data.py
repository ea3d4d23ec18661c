"""Data of a compile: labels, overlap, held-out texts, directories of `datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.compiler.data import Dataset, load_dataset
from edgelm.compiler.sections import DataConfig
from edgelm.runtime.errors import DataError, MissingExtra

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def table(folder: Path, name: str, *rows: str, header: str = "text,label") -> str:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def load(
    config: DataConfig,
    *,
    task: str = "text-classification",
    trained: bool = True,
    model_labels: tuple[str, ...] | None = None,
) -> Dataset:
    return load_dataset(config, task=task, trained=trained, model_labels=model_labels, seed=0)  # type: ignore[arg-type]


def refused(config: DataConfig, **how: object) -> DataError:
    with pytest.raises(DataError) as caught:
        load(config, **how)  # type: ignore[arg-type]
    return caught.value


def test_training_data_gives_the_labels(tmp_path):
    train = table(tmp_path, "train.csv", "a,y", "b,x", "c,y")
    data = load(DataConfig(train=train, eval=table(tmp_path, "eval.csv", "d,y")))
    assert (data.labels, data.problem, data.pair) == (("x", "y"), "single_label", False)
    assert [e.text for e in data.train] == ["a", "b", "c"]
    assert data.report.label_counts == {"x": 1, "y": 2}
    assert data.report.columns.label == "label"
    notes = " | ".join(data.report.notes)
    assert "1 label (x) without a text to evaluate on" in notes
    assert "1 label (x) with a single text to train on" in notes


def test_whole_numbers_are_sorted_by_value(tmp_path):
    train = table(tmp_path, "train.csv", *(f"text {i},{i}" for i in (10, 9, 2, -1)))
    table(tmp_path, "eval.csv", "new,10")
    data = load(DataConfig(train=train, eval=str(tmp_path / "eval.csv")))
    assert data.labels == ("-1", "2", "9", "10")


def test_sets_of_labels(tmp_path):
    rows = [f"text {i},{'x;y' if i % 2 else 'x'}" for i in range(20)]
    train = table(tmp_path, "train.csv", *rows, header="text,tags")
    data = load(DataConfig(train=train))
    assert (data.problem, data.labels) == ("multi_label", ("x", "y"))
    assert data.report.label_counts["x"] == data.report.n_train == 18
    held_out = table(tmp_path, "eval.csv", "new,x", header="text,tags")
    assert load(DataConfig(train=train, eval=held_out)).eval[0].labels == ("x",)


def test_a_part_is_held_out_without_evaluation_data(tmp_path):
    rows = [f"text {i},{'xy'[i % 2]}" for i in range(40)]
    data = load(DataConfig(train=table(tmp_path, "train.csv", *rows), eval_fraction=0.25))
    assert (data.report.n_train, data.report.n_eval, data.report.n_overlap) == (30, 10, 0)
    assert "10 of 40 texts were held out to evaluate on (seed 0)" in data.report.notes


def test_overlap_is_left_out_of_the_evaluation(tmp_path):
    train = table(tmp_path, "train.csv", "A  b,x", "c,y", "C,x")
    held_out = table(tmp_path, "eval.csv", "a B,y", "d,x", "d,x")
    report = load(DataConfig(train=train, eval=held_out)).report
    assert (report.n_eval, report.n_overlap) == (2, 1)
    overlap = report.overlap_examples[0]
    assert (overlap.text, overlap.eval_row, overlap.train_row) == ("a B", 2, 2)
    notes = " | ".join(report.notes)
    assert f"the first: {held_out}, row 2 is {train}, row 2" in notes
    assert "1 training texts stand with different labels" in notes
    assert f"{train}, row 3 (y) and {train}, row 4 (x)" in notes
    err = refused(DataConfig(train=train, eval=train))
    assert "all of them stand in the training data" in str(err)


def test_labels_that_cannot_be_learnt(tmp_path):
    train = table(tmp_path, "train.csv", "a,greeting", "b,farewell")
    held_out = table(tmp_path, "eval.csv", "c,greeting", "d,greetings", "e,other")
    err = refused(DataConfig(train=train, eval=held_out))
    assert (str(err.path), err.row) == (held_out, 3)
    assert "'greetings' (did you mean 'greeting'?)" in str(err)
    assert f"'other' in {held_out}, row 4" in str(err)
    err = refused(DataConfig(train=table(tmp_path, "one.csv", "a,x", "b,x")))
    assert "all texts have the label 'x'" in str(err)
    err = refused(DataConfig(train=table(tmp_path, "few.csv", "a,x", "b,y")))
    assert "too few to hold one out" in str(err)


def test_labels_of_a_model_that_is_fine_tuned(tmp_path):
    held_out = table(tmp_path, "eval.csv", "a,0", "b,LABEL_1", "c,POSITIVE", "d,negative")
    model = ("negative", "positive")
    data = load(DataConfig(eval=held_out), trained=False, model_labels=model)
    assert [e.labels for e in data.eval] == [(model[i],) for i in (0, 1, 1, 0)]
    assert (data.labels, data.train) == (model, ())
    assert data.report.label_counts == {"negative": 2, "positive": 2}
    assert "0 is negative, LABEL_1 is positive, POSITIVE is positive" in data.report.notes[0]
    plain = load(
        DataConfig(eval=table(tmp_path, "b.csv", "a,0", "b,1")),
        trained=False,
        model_labels=("LABEL_0", "LABEL_1"),
    )
    assert plain.eval[1].labels == ("LABEL_1",)


def test_labels_that_the_model_does_not_know(tmp_path):
    held_out = table(tmp_path, "eval.csv", "a,positiv", "b,7", "c,negative")
    err = refused(DataConfig(eval=held_out), trained=False, model_labels=("negative", "positive"))
    assert (str(err.path), err.row) == (held_out, 2)
    assert "'positiv' (did you mean 'positive'?)" in str(err)
    assert f"'7' in {held_out}, row 3" in str(err)
    numbers = table(tmp_path, "n.csv", "a,0")
    err = refused(DataConfig(eval=numbers), trained=False, model_labels=("1", "2"))
    assert "no label '0'" in str(err)


def test_a_model_that_is_not_trained_needs_texts_only(tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\nthree\n")
    texts, held_out = str(tmp_path / "texts.txt"), table(tmp_path, "e.csv", "a,x", "two,y")
    config = DataConfig(train=texts, eval=held_out, label="label")
    data = load(config, trained=False, model_labels=("x", "y"))
    assert [(e.text, e.labels) for e in data.train] == [(t, None) for t in ("one", "two", "three")]
    assert [e.text for e in data.eval] == ["a"]
    labelled = table(tmp_path, "t.csv", "a,x", "b,x", "c,y", "d,y")
    data = load(DataConfig(train=labelled), trained=False, model_labels=("x", "y"))
    assert (len(data.train), len(data.eval)) == (2, 2)


def test_missing_and_mismatched_files(tmp_path):
    assert "no training data" in str(refused(DataConfig(eval="x.csv")))
    assert "no evaluation data" in str(
        refused(DataConfig(), trained=False, model_labels=("x", "y"))
    )
    assert "no such file" in str(refused(DataConfig(train=str(tmp_path / "no.csv"))))
    train = table(tmp_path, "train.csv", "a,x", "b,y")
    pairs = table(tmp_path, "eval.csv", "a,b,x", header="sentence1,sentence2,label")
    assert "pairs of texts" in str(refused(DataConfig(train=train, eval=pairs)))
    assert "both train.csv and eval.csv" in str(refused(DataConfig(train=str(tmp_path))))


def test_embeddings_need_no_labels(tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"text {i}\n" for i in range(30)))
    texts = str(tmp_path / "texts.txt")
    data = load(DataConfig(train=texts), task="feature-extraction", trained=False)
    assert (len(data.train), len(data.eval), data.labels) == (27, 3, ())
    scored = table(tmp_path, "s.csv", "a,b,4.5", header="sentence1,sentence2,score")
    data = load(DataConfig(train=texts, eval=scored), task="feature-extraction", trained=False)
    assert (data.pair, data.eval[0].score, len(data.train)) == (True, 4.5, 30)
    gold = table(tmp_path, "g.csv", "a,b,2", header="sentence1,sentence2,gold")
    config = DataConfig(train=texts, eval=gold, label="gold")
    assert load(config, task="feature-extraction", trained=False).eval[0].score == 2.0


def test_digests_follow_contents(tmp_path):
    digests: list[str] = []
    for name, label in (("one", "y"), ("two", "y"), ("three", "x")):
        folder = tmp_path / name
        folder.mkdir()
        train = table(folder, "train.csv", "a,x", f"b,{label}", "c,y")
        data = load(DataConfig(train=train, eval=table(folder, "eval.csv", "d,x", "e,y")))
        digests.append(data.digest())
    assert digests[0] == digests[1] != digests[2]


def test_directories_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    train = {"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}
    splits = {"train": train, "test": {"text": ["A", "e"], "label": [0, 1]}}
    both = datasets.DatasetDict(
        {k: datasets.Dataset.from_dict(v, features=features) for k, v in splits.items()}
    )
    both.save_to_disk(str(tmp_path / "both"))
    data = load(DataConfig(train=str(tmp_path / "both")))
    assert [e.labels for e in data.train] == [("bad",), ("good",)] * 2
    assert (data.report.n_overlap, data.eval[0].labels) == (1, ("good",))
    assert (data.eval[0].path, data.eval[0].row) == (tmp_path / "both" / "test", 2)
    data = load(DataConfig(train=str(tmp_path / "both" / "train")))
    assert (len(data.train), len(data.eval)) == (2, 2)
    sets = datasets.Features(
        {"text": datasets.Value("string"), "tags": datasets.List(features["label"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a"], "tags": [[1, 0]]}, features=sets)
    table.save_to_disk(str(tmp_path / "sets"))
    config = DataConfig(eval=str(tmp_path / "sets"))
    data = load(config, trained=False, model_labels=("bad", "good"))
    assert (data.problem, data.eval[0].labels) == ("multi_label", ("good", "bad"))
    for file in (tmp_path / "sets").glob("*.arrow"):
        file.write_bytes(b"broken")
    assert "cannot be read by `datasets`" in str(refused(config, trained=False))


def test_directories_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra):
        load(DataConfig(train=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "suffix", "n_labels", "n_overlap"),
    [("banking77", "csv", 77, 7), ("chnsenticorp_zh", "tsv", 2, 331)],
)
def test_real_data(folder, suffix, n_labels, n_overlap):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the real data {folder} is not beside the project")
    train, test = (str(SHARED / folder / f"{name}.{suffix}") for name in ("train", "test"))
    data = load(DataConfig(train=train, eval=test))
    assert (len(data.labels), data.report.n_overlap) == (n_labels, n_overlap)
    data = load(DataConfig(train=train))
    assert {e.labels for e in data.eval} == {(label,) for label in data.labels}
