"""`predict` and `stream` of a generation bundle: the same meaning on both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from conftest import Run  # pyright: ignore[reportMissingImports]

import edgelm
from edgelm.runtime.chat_model import ChatModel

VARIANTS = ("gguf-f32", "onnx-fp32")
ASK = "where is my parcel"
TALK = [
    {"role": "user", "content": ASK},
    {"role": "assistant", "content": "the refund is late"},
    {"role": "user", "content": "hello again"},
]


@pytest.fixture(scope="module", params=VARIANTS)
def chat(talker: Path, request: pytest.FixtureRequest) -> Iterator[ChatModel]:
    with edgelm.load(talker, variant=request.param, threads=1) as model:
        assert isinstance(model, ChatModel)
        yield model


def test_the_engines_agree(talker: Path) -> None:
    answers: list[Any] = []
    for variant in VARIANTS:
        with edgelm.load(talker, variant=variant, threads=1) as model:
            texts = [model.predict(p, max_tokens=24).text for p in (ASK, TALK)]
            sampled = model.predict(ASK, max_tokens=24, temperature=0.8, top_p=0.9, seed=7).text
            answers.append((texts, sampled))
    assert answers[0] == answers[1]


def test_a_gpu_is_not_taken_for_a_variant_that_has_none(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelm.targets import get_target
    from edgelm.targets.onnx import providers

    if "cuda" in get_target("gguf").capabilities().devices:
        pytest.skip("llama.cpp here was built for CUDA")
    monkeypatch.setattr(providers, "missing_devices", lambda: {})
    with pytest.raises(edgelm.TargetUnavailable, match="onnx: no cuda device for text-generation"):
        edgelm.load(talker, device="cuda")


def test_pieces_join_to_the_answer(chat: ChatModel) -> None:
    whole = chat.predict(TALK, max_tokens=20)
    pieces = list(chat.stream(TALK, max_tokens=20))
    assert "".join(p.text for p in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason == "length"
    assert all(p.usage is None for p in pieces[:-1])
    assert whole.usage.answer_tokens == 20
    assert pieces[-1].usage is not None
    # all but the last token of the prompt was held from the call before
    assert pieces[-1].usage.reused_tokens == whole.usage.prompt_tokens - 1


def test_a_text_is_a_users_message_unless_raw(chat: ChatModel) -> None:
    message = [{"role": "user", "content": ASK}]
    assert chat.predict(ASK, max_tokens=8).text == chat.predict(message, max_tokens=8).text
    assert chat.predict(ASK, max_tokens=8, raw=True).usage.prompt_tokens < (
        chat.predict(ASK, max_tokens=8).usage.prompt_tokens
    )


def test_a_list_is_answered_as_one_by_one(chat: ChatModel) -> None:
    prompts: list[Any] = [ASK, TALK, "hello world", "please cancel order 4711", "a  b   c"] * 2
    together = chat.predict(prompts, max_tokens=10)
    assert [g.text for g in together] == [chat.predict(p, max_tokens=10).text for p in prompts]
    assert chat.predict([]) == []


def test_the_same_seed_gives_the_same_answer(chat: ChatModel) -> None:
    def draw(seed: int) -> str:
        return chat.predict(ASK, max_tokens=16, temperature=1.5, seed=seed).text

    assert draw(1) == draw(1) != draw(2)


def test_stop_strings_end_an_answer_and_are_no_part_of_it(chat: ChatModel) -> None:
    whole = chat.predict(ASK, max_tokens=24).text
    stop = whole[5:8]
    cut = chat.predict(ASK, max_tokens=24, stop=stop)
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop) == ("stop", stop)


def test_logprobs_are_told(chat: ChatModel) -> None:
    answer = chat.predict(ASK, max_tokens=4, logprobs=2)
    assert answer.logprobs is not None and len(answer.logprobs) == 4
    for score in answer.logprobs:
        assert score.logprob == score.alternatives[0][1]  # greedy: the likeliest
        assert score.alternatives[0][1] >= score.alternatives[1][1]
    assert chat.predict(ASK, max_tokens=4).logprobs is None


def test_answers_have_the_asked_form(chat: ChatModel) -> None:
    pytest.importorskip("llguidance")
    assert chat.predict(ASK, choices=["late", "lost"]).text in ("late", "lost")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    answers = chat.predict([ASK, "hello"], json_schema=schema, max_tokens=100)
    assert all(isinstance(json.loads(a.text)["ok"], bool) for a in answers)
    with pytest.raises(edgelm.UsageError, match="one constraint"):
        chat.predict(ASK, choices=["a"], regex="b")


def test_guessing_changes_no_answer(talker: Path) -> None:
    prompt = "a  b   c    d     e a  b   c    d     e"
    with edgelm.load(talker, variant="gguf-q8_0", threads=2, speculate=True) as model:
        plain = model.predict(prompt, max_tokens=32, raw=True).text
        assert model.predict(prompt, max_tokens=32, raw=True, speculate="lookup").text == plain


def test_guesses_need_a_model_that_rounds_alike(chat: ChatModel, talker: Path) -> None:
    with pytest.raises(edgelm.UsageError, match="not loaded for guesses"):
        chat.predict(ASK, speculate="lookup")
    with pytest.raises(edgelm.TargetUnavailable, match="cannot be loaded with speculate"):
        edgelm.load(talker, variant="onnx", speculate=True)


def test_a_draft_model_changes_no_answer(talker: Path) -> None:
    with edgelm.load(talker, variant="gguf-q8_0", threads=1, draft=talker) as model:
        plain = model.predict(ASK, max_tokens=24).text
        assert model.predict(ASK, max_tokens=24, speculate="draft").text == plain
    with (
        edgelm.load(talker, variant="gguf-q8_0", threads=1, speculate=True) as model,
        pytest.raises(edgelm.UsageError, match="no draft model"),
    ):
        model.predict(ASK, speculate="draft")


def test_the_context_ends(chat: ChatModel) -> None:
    with pytest.raises(edgelm.InputError, match="more than the context of 128"):
        chat.predict(ASK, max_tokens=500)
    with pytest.raises(edgelm.InputError, match="more than the context"):
        chat.predict("hello world " * 200)
    slid = chat.predict(ASK, max_tokens=200, on_long="slide")
    assert slid.usage.answer_tokens == 200
    # until the context is full, nothing is forgotten
    assert slid.text.startswith(chat.predict(ASK, max_tokens=60).text)


def test_two_answers_may_grow_in_turns(chat: ChatModel) -> None:
    expected = [chat.predict(p, max_tokens=12).text for p in (ASK, "hello world")]
    streams = [chat.stream(p, max_tokens=12) for p in (ASK, "hello world")]
    turns = list(zip_longest(*streams))
    texts = ["".join(turn[i].text for turn in turns if turn[i]) for i in (0, 1)]
    assert texts == expected


def test_closing_the_iterator_ends_the_answer(chat: ChatModel) -> None:
    stream = chat.stream(ASK, max_tokens=100)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []
    assert chat.predict(ASK, max_tokens=5).usage.answer_tokens == 5


def test_threads_get_the_answers_of_one(chat: ChatModel) -> None:
    prompts = [ASK, "hello world", "café"] * 3
    expected = [chat.predict(p, max_tokens=6).text for p in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: chat.predict(p, max_tokens=6).text, prompts))
    assert found == expected


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (None, "NoneType"),
        ([{"content": "hi"}], "message 0"),
        ([{"role": "user", "content": "hi"}, "there"], "message 1"),
        ("\udc80", "lone surrogate"),
        (b"hi", "bytes"),
    ],
)
def test_what_is_no_prompt_is_refused(chat: ChatModel, prompt: Any, says: str) -> None:
    with pytest.raises(edgelm.InputError, match=says):
        chat.predict(prompt)


def test_other_tasks_do_not_stream(classifier: Path, talker: Path) -> None:
    with edgelm.load(classifier, threads=1) as model:
        with pytest.raises(edgelm.UsageError, match="answers at once"):
            model.stream("hi")
        with pytest.raises(TypeError):
            model.predict("hi", max_tokens=3)
    with pytest.raises(edgelm.UsageError, match="speculate and draft are not for it"):
        edgelm.load(classifier, draft=talker)
    model = edgelm.load(talker, threads=1)
    model.close()
    model.close()
    with pytest.raises(edgelm.UsageError, match="closed"):
        model.predict("hi")


PROGRAM = """
import json, sys
import edgelm
with edgelm.load(sys.argv[1], variant=sys.argv[2], threads=1) as model:
    assert model.predict("hello", max_tokens=3).usage.answer_tokens == 3
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_generating_is_thin(talker: Path, variant: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(talker), variant],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "transformers", "onnxruntime_genai", "llguidance", "gguf"}


def test_predict_writes_json_lines(
    talker: Path, tmp_path: Path, run_cli: Callable[..., Run]
) -> None:
    common = ("predict", talker, "--threads", "1", "--max-tokens", "5", "-q")
    one = run_cli(*common, ASK)
    assert one.code == 0 and one.rows[0]["usage"]["answer_tokens"] == 5
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (TALK[:1], TALK)))
    many = run_cli(*common, "-f", file)
    assert [row["row"] for row in many.rows] == [1, 2]
    assert many.rows[0]["text"] == one.rows[0]["text"]
    lines = run_cli(*common, stdin=f"{ASK}\nhello\n".encode())
    assert lines.rows[0]["text"] == one.rows[0]["text"]
    wrong = run_cli(*common, "--top-p", "7", "hi")
    assert wrong.code == 2 and "top_p: 7.0" in wrong.err


def test_chat_in_the_terminal(talker: Path, run_cli: Callable[..., Run]) -> None:
    typed = (
        f'{ASK}\n/reset\n"""\nhello\nworld\n"""\nhello \\\nagain\n/what\n/system be brief\n/exit\n'
    )
    run = run_cli("chat", talker, "--threads", "1", "--max-tokens", "6", stdin=typed.encode())
    assert run.code == 0
    with edgelm.load(talker, threads=1) as model:
        assert run.out.splitlines()[0] == model.predict(ASK, max_tokens=6).text.splitlines()[0]
        expected = model.predict("hello\nworld", max_tokens=6).text
    assert expected.splitlines()[0] in run.out
    assert run.err.count("tokens/s]") == 3
    assert "/what is not known" in run.err and "a new conversation" in run.err


def test_chat_is_for_chat_models(classifier: Path, run_cli: Callable[..., Run]) -> None:
    run = run_cli("chat", classifier)
    assert run.code == 2 and "no chat model" in run.err
