"""Decode: tokens/s of prompts and answers through `stream`, beside the engines' own loops."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from _lib.compiled import Compiled
from _lib.results import Goal, at_least, report
from _lib.rounds import Spread, Told, Worker, ratios
from _lib.smollm2.bundle import GGUF, chat_worker, file_of, has_variant
from _lib.smollm2.peers import llama_bench

N_PROMPT, N_ANSWER = 512, 128
BENCH, PYTHON, GENAI = "native llama-bench", "llama-cpp-python's loop", "onnxruntime-genai's loop"
MIN_NATIVE, MIN_PROMPT, MIN_GENAI = 0.95, 0.97, 0.97

Rates = dict[str, dict[str, list[float]]]  # contender -> "prompt" and "answer" -> tokens/s


def section(compiled: Compiled, *, rounds: int, threads: int) -> tuple[str, list[str]]:
    """Each file by itself, contenders in turns; and what of the peers' versions to say."""
    groups: list[tuple[str, Rates]] = []
    said: dict[str, str] = {}
    for precision in GGUF:
        groups.append((f"gguf-{precision}", _gguf(compiled, precision, rounds, threads, said)))
    if has_variant(compiled, "onnx-int4"):
        groups.append(("onnx-int4", _onnx(compiled, rounds, threads, said)))
    return _render(groups, rounds, threads), [f"{k} {v}" for k, v in said.items()]


def _edgelm(worker: Worker, prompt: str, long_prompt: str) -> tuple[float, float]:
    """(prompt, answer) tokens/s."""
    worker.ask(prompt=long_prompt, max_tokens=1)  # llama-bench reads its prompt twice too
    read = worker.ask(prompt=long_prompt, max_tokens=1)
    assert read["prompt_tokens"] == N_PROMPT
    told = worker.ask(prompt=prompt, max_tokens=N_ANSWER)
    return read["prompt_tokens"] / read["first_s"], _rate(told)


def _rate(told: Told) -> float:
    return (told["answer_tokens"] - 1) / told["seconds"]  # the clock runs from the first one on


def _gguf(
    compiled: Compiled, precision: str, rounds: int, threads: int, said: dict[str, str]
) -> Rates:
    file = file_of(compiled, f"gguf-{precision}")
    rates: Rates = {}
    for i in range(rounds):
        with ExitStack() as stack:
            ours = stack.enter_context(_ours(compiled, f"gguf-{precision}", threads))
            options = {
                "model": str(file), "prompt_ids": ours.ready["prompt_ids"], "threads": threads
            }  # fmt: skip
            plain = stack.enter_context(Worker(PYTHON, "llama_cpp_python_chat.py", options))
            said |= plain.ready["versions"]
            _note(rates, ours.name, *_edgelm(ours, *_prompts(ours)))
            n_before = len(ours.ready["prompt_ids"])
            _note(rates, BENCH, *llama_bench(file, threads, N_PROMPT, N_ANSWER, n_before))
            _note(rates, PYTHON, None, _rate(plain.ask(max_tokens=N_ANSWER)))
        _say(rates, i, rounds)
    return rates


def _onnx(compiled: Compiled, rounds: int, threads: int, said: dict[str, str]) -> Rates:
    folder = file_of(compiled, "onnx-int4").parent
    rates: Rates = {}
    for i in range(rounds):
        with ExitStack() as stack:
            ours = stack.enter_context(_ours(compiled, "onnx-int4", threads))
            options = {"model": str(folder), "threads": threads}
            options |= {name: ours.ready[name] for name in ("prompt_ids", "long_prompt_ids")}
            plain = stack.enter_context(Worker(GENAI, "genai_chat.py", options))
            said |= plain.ready["versions"]
            _note(rates, ours.name, *_edgelm(ours, *_prompts(ours)))
            plain.ask(long=True, max_tokens=1)
            read = plain.ask(long=True, max_tokens=1)
            told = plain.ask(long=False, max_tokens=N_ANSWER)
            _note(rates, GENAI, N_PROMPT / read["first_s"], _rate(told))
        _say(rates, i, rounds)
    return rates


def _ours(compiled: Compiled, variant: str, threads: int) -> Worker:
    return chat_worker(compiled, variant, threads, {"long_tokens": N_PROMPT})


def _prompts(worker: Worker) -> tuple[str, str]:
    return worker.ready["prompt"], worker.ready["long_prompt"]


def _note(rates: Rates, name: str, prompt: float | None, answer: float) -> None:
    found = rates.setdefault(name, {"prompt": [], "answer": []})
    if prompt is not None:
        found["prompt"].append(prompt)
    found["answer"].append(answer)


def _say(rates: Rates, i: int, rounds: int) -> None:
    shown = ", ".join(f"{name} {found['answer'][-1]:.0f}" for name, found in rates.items())
    sys.stderr.write(f"round {i + 1}/{rounds}: tokens/s {shown}\n")


def _render(groups: list[tuple[str, Rates]], rounds: int, threads: int) -> str:
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for variant, rates in groups:
        ours = rates[f"edgelm {variant}"]
        for name, found in rates.items():
            cells = [variant, name]
            for what in ("prompt", "answer"):
                cells.append(Spread.of(found[what]).show(0) if found[what] else "-")
                is_peer = found is not ours and found[what]
                cells.append(ratios(ours[what], found[what]).show() if is_peer else "-")
            rows.append(cells)
        peer = GENAI if variant.startswith("onnx") else BENCH
        least = MIN_GENAI if variant.startswith("onnx") else MIN_NATIVE
        for what, limit in (("answer", least), ("prompt", MIN_PROMPT)):
            gain = ratios(ours[what], rates[peer][what])
            goals.append(at_least(f"{variant}: {what} tokens/s against {peer}", limit, gain, "x"))
    head = ["variant", "contender", "prompt tokens/s", "edgelm is x", "answer tokens/s"]
    said = [
        f"A prompt of {N_PROMPT} tokens up to the first answer token, and {N_ANSWER} answer "
        f"tokens, greedy, from the first to the last; {threads} threads, {rounds} rounds in "
        "turns, the same file for all contenders of a variant. Ratios are taken round by "
        "round; more than 1 means that edgelm is faster. Each reads the prompt once before the "
        "clock runs. Processes are new each round, so that none keeps the luck of where its "
        "weights came to lie in memory.",
        "",
        "- edgelm: `ChatModel.stream` from messages to pieces of text, in a process of its "
        "own, loaded and warmed up; template, tokenizing and text are in the times; nothing of "
        "a prompt is held from before",
        f"- llama-bench: pp{N_PROMPT}, and tg{N_ANSWER} behind as many tokens as edgelm's "
        "prompt has (-d), of one repetition (-r 1), after its own "
        "warm-up; it feeds random tokens, samples none and makes no text",
        "- llama-cpp-python: `create_completion(stream=True)`, the same prompt as ids",
        "- onnxruntime-genai: `generate_next_token` and its tokenizer's stream, the same ids",
    ]
    return report(said, [*head, "edgelm is x"], rows, goals)
