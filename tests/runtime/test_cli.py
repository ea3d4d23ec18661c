"""The commands that need the thin runtime only: results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import edgelm

TEXTS = ["i lost my card", "please refund", "我 的 卡", "hello " * 90]
FAST = ("--variant", "onnx-fp32", "--threads", "1")


@pytest.fixture(scope="module")
def expected(classifier: Path) -> list[dict[str, object]]:
    """The rows that TEXTS are answered with."""
    with edgelm.load(classifier, variant="onnx-fp32", threads=1) as model:
        answers = model.predict(TEXTS)
    rows = []
    for answer in answers:
        assert isinstance(answer, edgelm.Classification)
        cut = {"truncated": True} if answer.truncated else {}
        rows.append({"label": answer.label, "score": pytest.approx(answer.score, abs=1e-4), **cut})
    assert [len(r) for r in rows] == [2, 2, 2, 3]
    return rows


def numbered(rows: list[dict[str, object]], first: int) -> list[dict[str, object]]:
    return [{"row": i, **row} for i, row in enumerate(rows, first)]


def test_predict_texts(run_cli, classifier: Path, expected) -> None:
    run = run_cli("predict", classifier, *TEXTS, *FAST)
    assert (run.code, run.rows, run.err) == (0, expected, "")


def test_predict_all_scores(run_cli, classifier: Path) -> None:
    (row,) = run_cli("predict", classifier, "i lost my card", "--all-scores", *FAST).rows
    assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


FILES = [
    ("t.txt", lambda texts: "\n".join(texts), 1),
    ("t.csv", lambda texts: "id,text\n" + "".join(f'1,"{t}"\n' for t in texts), 2),
    ("t.jsonl", lambda texts: "".join(json.dumps({"text": t}) + "\n" for t in texts), 1),
]


@pytest.mark.parametrize(("name", "content", "first"), FILES, ids=[f[0] for f in FILES])
def test_predict_a_file(run_cli, classifier: Path, expected, tmp_path, name, content, first):
    path = tmp_path / name
    path.write_text(content(TEXTS), encoding="utf-8")
    run = run_cli("predict", classifier, "-f", path, *FAST)
    assert (run.code, run.rows) == (0, numbered(expected, first))
    assert "predict: done" in run.err
    assert run_cli("predict", classifier, "-f", path, "-q", *FAST).err == ""


def test_predict_named_column(run_cli, classifier: Path, expected, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,says\nnot,i lost my card\n")
    run = run_cli("predict", classifier, "-f", path, "--text-column", "says", *FAST)
    assert run.rows == numbered(expected[:1], 2)


def test_predict_stdin(run_cli, classifier: Path, expected) -> None:
    run = run_cli("predict", classifier, *FAST, stdin="\n".join(TEXTS).encode())
    assert (run.code, run.rows) == (0, numbered(expected, 1))


def test_answers_before_a_bad_row_are_given(run_cli, classifier: Path, expected) -> None:
    run = run_cli("predict", classifier, *FAST, stdin=b"i lost my card\n\xff\n")
    assert run.code == 2
    assert run.rows == numbered(expected[:1], 1)
    assert "error: stdin, row 2: not valid UTF-8" in run.err


def test_the_long_text_is_named_by_its_row(run_cli, classifier: Path, expected) -> None:
    lines = ["i lost my card"] * 1500 + [TEXTS[3]]
    stdin = "\n".join(lines).encode()
    run = run_cli("predict", classifier, "--on-long", "error", *FAST, stdin=stdin)
    assert (run.code, len(run.rows)) == (2, 1500)
    assert "error: row 1501 is longer than 64 tokens\nhint: shorten it" in run.err
    run = run_cli("predict", classifier, "fine", TEXTS[3], "--on-long", "error", *FAST)
    assert "error: text 2 is longer than 64 tokens" in run.err


def start(*args: object) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "edgelm", *map(str, args)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


def test_a_slow_pipe_is_answered_line_by_line(classifier: Path) -> None:
    with start("predict", classifier, *FAST, "-q") as process:
        assert process.stdin
        assert process.stdout
        for number in (1, 2):
            process.stdin.write(b"i lost my card\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["row"] == number
        process.stdin.close()
        assert process.wait(60) == 0


def test_an_error_ends_the_program_though_the_pipe_stays_open(classifier: Path) -> None:
    with start("predict", classifier, *FAST, "-q", "--on-long", "error") as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(b"card " * 400 + b"\n")
        process.stdin.flush()
        assert process.wait(60) == 2
        assert process.stderr.read().startswith(b"error: row 1 is longer than 64")


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise")
def test_a_reader_that_leaves_ends_it_silently(classifier: Path) -> None:
    with start("predict", classifier, *FAST) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"i lost my card\n")
        process.stdin.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.csv"
    rows = [(text, ("card_lost", "refund", "other", "other")[i]) for i, text in enumerate(TEXTS)]
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    return path


def test_eval(run_cli, classifier: Path, labelled: Path, expected) -> None:
    run = run_cli("eval", classifier, "--data", labelled, "--threads", 1, "--json")
    (found,) = run.rows
    assert [e["variant"] for e in found] == ["onnx-fp32", "onnx-int8", "gguf-f16"]
    truth = ["card_lost", "refund", "other", "other"]
    hits = sum(row["label"] == label for row, label in zip(expected, truth, strict=True))
    assert found[0]["metrics"]["accuracy"] == hits / 4
    assert (found[0]["n"], found[0]["n_truncated"]) == (4, 1)
    wrong = {(g, f): n for g, f, n in found[0]["confusions"]}
    assert sum(wrong.values()) == 4 - hits
    table = run_cli("eval", classifier, "--data", labelled, "--variant", "gguf", "--threads", 1)
    assert "gguf-f16" in table.out
    assert "onnx" not in table.out
    assert "accuracy" in table.out


def test_verify(run_cli, classifier: Path) -> None:
    run = run_cli("verify", classifier, "--threads", 1, "--json")
    assert run.code == 0, run.err
    (checks,) = run.rows
    assert [c["name"] for c in checks] == ["files", "onnx-fp32", "onnx-int8", "gguf-f16"]
    assert all(c["ok"] and not c["skipped"] for c in checks)
    text = run_cli("verify", classifier, "--variant", "gguf", "--threads", 1).out
    assert [line.split(": ")[:2] for line in text.splitlines()] == [
        ["files", "ok"],
        ["gguf-f16", "ok"],
    ]
    run = run_cli("verify", classifier, "--device", "cuda")  # no answer checked is no success
    assert run.code == 3
    assert "no variant could be run on device cuda" in run.err


def test_verify_finds_other_answers(run_cli, classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))
    manifest = json.loads((copy / "edgelm.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["golden"][0][0] += 0.5
    (copy / "edgelm.json").write_text(json.dumps(manifest), encoding="utf-8")
    run = run_cli("verify", copy, "--threads", 1)
    assert run.code == 4
    assert "onnx-fp32: FAILED" in run.out
    assert "largest difference 5.0e-01" in run.out
    assert run.err.startswith(f"error: {copy}: other answers than packed: onnx-fp32\n")


def test_verify_finds_changed_files(run_cli, classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))
    (copy / "card.md").write_text("better than it is")
    run = run_cli("verify", copy, "--json")
    assert run.code == 5
    assert [c["ok"] for c in run.rows[0]] == [False]
    assert "card.md" in run.err


def test_inspect(run_cli, classifier: Path, embedder: Path) -> None:
    run = run_cli("inspect", classifier)
    assert (run.code, run.err) == (0, "")
    for part in ("classifier 1.0.0 (release 1)", "card_lost, refund, other", "gguf-f16", "64 tok"):
        assert part in run.out
    assert "32 dimensions, mean pooling, length one" in run_cli("inspect", embedder).out
    (manifest,) = run_cli("inspect", classifier, "--json").rows
    assert manifest == json.loads((classifier / "edgelm.json").read_text(encoding="utf-8"))


def test_bench(run_cli, classifier: Path) -> None:
    run = run_cli("bench", classifier, *FAST, "--seconds", 0.1, "--json")
    assert run.code == 0, run.err
    ((name, figures),) = run.rows[0].items()
    assert name == "onnx-fp32"
    assert figures["threads"] == 1
    assert figures["size_bytes"] > 10_000
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p95"]
    assert figures["texts_per_s"] > 0
    assert figures["memory_bytes"] > 1e7


def test_targets(run_cli) -> None:
    (rows,) = run_cli("targets", "--json").rows
    assert {"onnx", "gguf"} <= {r["target"] for r in rows}
    assert all(r["precisions"] and r["devices"] and r["tasks"] for r in rows)
    engines = {r["target"]: r["engine"].split() for r in rows}
    assert engines["gguf"] == ["llama-cpp-python", metadata.version("llama-cpp-python")]
    assert "runs here" in run_cli("targets").out


def test_init_writes_a_recipe_that_loads(run_cli, tmp_path: Path) -> None:
    from edgelm.compiler import load_recipe

    path = tmp_path / "recipe.yaml"
    assert run_cli("init", path).code == 0
    recipe = load_recipe(path, {})
    assert (recipe.data.train, recipe.output) == ("train.csv", "my-model.edgelm")
    again = run_cli("init", path)
    assert (again.code, "--force" in again.err) == (2, True)
    assert run_cli("init", path, "--force").code == 0


def test_version_and_help(run_cli) -> None:
    assert run_cli("--version").out == f"edgelm, version {edgelm.__version__}\n"
    text = run_cli("-h").out
    for command in ("compile", "init", "predict", "eval", "verify", "bench", "inspect", "targets"):
        assert command in text
        assert run_cli(command, "--help").code == 0


def test_a_closed_stdin_is_an_error_and_a_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelm.runtime.commands.predict import _stdin  # pyright: ignore[reportPrivateUsage]

    terminal = io.TextIOWrapper(io.BytesIO(b"hi"))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert _stdin().read() == b"hi"
    assert capsys.readouterr().err.startswith("waiting for texts")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(edgelm.UsageError, match="stdin is closed"):
        _stdin()
