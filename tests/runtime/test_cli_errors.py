"""A user's mistake ends in `error:`, a fitting exit code, no traceback and nothing on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MISTAKES = [
    # predict
    ("predict {tmp}/none.edgelm hi", 5, "none.edgelm: no such bundle"),
    ("predict {tmp} hi", 5, "not a bundle, it has no edgelm.json"),
    ("predict {tmp}/broken hi", 5, "edgelm.json: not valid JSON"),
    ("predict {tmp}/later hi", 5, "format 7, this edgelm reads format 1"),
    ("predict {b} hi --variant onnx-int4", 2, "no variant 'onnx-int4' (did you mean 'onnx-"),
    ("predict {b} hi --device tpu", 2, "device: 'tpu' is none of auto, cpu, cuda, tensorrt"),
    ("predict {b} hi --threads 0", 2, "threads: 0 must be at least 1"),
    ("predict {b} hi --threads many", 2, "'many' is not a valid integer"),
    ("predict {b} hi -f {tmp}/good.csv", 2, "give either texts or --file, not both"),
    ("predict {b} -f {tmp}/none.csv", 2, "none.csv: there is no such file"),
    ("predict {b} -f {tmp}/image.png", 2, "image.png"),
    ("predict {b} -f {tmp}/latin.csv", 2, "latin.csv, row 2: byte 0xe9"),
    ("predict {b} -f {tmp}/ragged.csv", 2, "ragged.csv, row 2: 3 fields"),
    ("predict {b} -f {tmp}/numbers.jsonl", 2, "numbers.jsonl, row 1"),
    ("predict {b} -f {tmp}/good.csv --text-column txet", 2, "did you mean 'text'?"),
    ("predict {b} -f {tmp}/odd.csv", 2, "no column looks like the text among 'x', 'y'"),
    ("predict {b} -f {tmp}/empty.txt", 2, "empty.txt: the file is empty"),
    ("predict {b} hi --on-long error --varaint x", 2, "No such option"),
    # the other commands on bundles
    ("eval {b}", 2, "Missing option '--data'"),
    ("eval {b} --data {tmp}/good.csv --variant onnx-fp32", 2, "row 2: the bundle knows no label"),
    ("eval {b} --data {tmp}/odd.csv", 2, "no column looks like the text"),
    ("eval {b} --data {tmp}/good.csv --variant none", 2, "no variant 'none'"),
    ("eval {tmp}/none.edgelm --data {tmp}/good.csv", 5, "no such bundle"),
    ("verify {tmp}/none.edgelm", 5, "no such bundle"),
    ("inspect {tmp}/broken", 5, "not valid JSON"),
    ("bench {b} --variant none", 2, "no variant 'none'"),
    ("bench {b} --variant onnx-fp32 --threads 0", 2, "threads: 0 must be at least 1"),
    ("bench {b} --data {tmp}/none.csv", 2, "there is no such file"),
    # compile and init
    ("init {tmp}", 2, "exists already"),
    ("init {tmp} --force", 5, "is a directory"),
    ("init {tmp}/no/where.yaml", 5, "there is no directory"),
    ("compile {tmp}/none.yaml", 2, "none.yaml: no such recipe"),
    ("compile {tmp}/list.yaml", 2, "a recipe is a mapping"),
    ("compile {tmp}/tabs.yaml", 2, "tabs.yaml: not valid YAML"),
    ("compile {tmp}/latin.yaml", 2, "latin.yaml: cannot be read"),
    ("compile {tmp}/typo.yaml", 2, "train.epocs: unknown key (did you mean 'epochs'?)"),
    ("compile {tmp}/flat.yaml --epochs 2", 2, "train: 5 is not a mapping"),
    ("compile {tmp}/none", 2, "none: no such directory"),
    ("compile {tmp}/model --target tensorflow:int8", 2, "unknown target 'tensorflow'"),
    ("compile {tmp}/model --target onnx:int9", 2, "onnx has no precision 'int9'"),
    ("compile {tmp}/model --target onnx", 2, "onnx has no precision ''"),
    ("compile {tmp}/model --epochs 0", 2, "train.epochs: 0.0: must be above 0"),
    ("compile {tmp}/model --epoks 1", 2, "No such option"),
    ("compile {tmp}/model", 2, "config.json: missing, so this is no Hugging Face model"),
    ("compile {tmp}/good.csv", 2, "not a directory"),
    ("compile {tmp}/model --output {tmp}/good.csv", 5, "exists and is no bundle"),
    ("compile pkg:no_such_package/model", 2, "no package 'no_such_package' is installed"),
    ("predcit", 2, "No such command 'predcit' (did you mean 'predict'?)"),
]

FILES = {
    "good.csv": b"text,label\nhello,greeting\n",
    "odd.csv": b"x,y\n1,2\n",
    "latin.csv": b"text,label\ncaf\xe9,a\n",
    "ragged.csv": b"text,label\na,b,c\n",
    "numbers.jsonl": b'{"text": 3}\n',
    "empty.txt": b"",
    "image.png": b"\x89PNG\r\n\x1a\n\0\0",
    "list.yaml": b"- model\n",
    "tabs.yaml": b"model: [a\n\t- b\n",
    "latin.yaml": b"model: caf\xe9\n",
    "typo.yaml": b"model: m\ntrain:\n  epocs: 3\n",
    "flat.yaml": b"model: m\ntrain: 5\n",
    "broken/edgelm.json": b"{",
    "later/edgelm.json": json.dumps({"format": 7}).encode(),
    "model/readme": b"",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mistakes")
    for name, raw in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(raw)
    return root


@pytest.mark.parametrize(("line", "code", "says"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes(run_cli, classifier: Path, folder: Path, line: str, code: int, says: str):
    args = [part.format(tmp=folder, b=classifier) for part in line.split()]
    run = run_cli(*args)
    assert says in run.err.replace("\n", " ")
    assert (run.code, run.out) == (code, "")


def test_a_hint_says_what_to_do_next(run_cli, classifier: Path, tmp_path: Path) -> None:
    err = run_cli("predict", classifier, "hi", "--variant", "onnx-int4").err
    assert "\nhint: the bundle holds onnx-fp32, onnx-int8, gguf-f16\n" in err
