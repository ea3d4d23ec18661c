"""edgelm: a chat model that answers as it is asked to, and says how long each part took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from protocol import Options, answer_all, options, versions

import edgelm
from edgelm.runtime.chat_model import ChatModel

OTHER = "-"
ENGINES = {"gguf": "llama-cpp-python", "onnx": "onnxruntime"}


def stream(model: ChatModel, prompt: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """One answer. `seconds` runs from the first piece to the last."""
    started = time.perf_counter()
    pieces = model.stream(prompt, **asked)
    texts = [next(pieces)]
    first = time.perf_counter()
    cpu = time.process_time()
    texts += pieces
    ended = time.perf_counter()
    usage = texts[-1].usage
    assert usage is not None
    return {
        "first_s": first - started,
        "seconds": ended - first,
        "cpu_s": time.process_time() - cpu,
        "prompt_tokens": usage.prompt_tokens,
        "answer_tokens": usage.answer_tokens,
        "reused_tokens": usage.reused_tokens,
        "text": "".join(piece.text for piece in texts),
        "finish_reason": texts[-1].finish_reason,
    }


def answer(model: ChatModel, question: Options) -> dict[str, Any]:
    """`prompt` for one answer, `prompts` for a list; the rest are options of `predict`. Where
    `held` is not asked for, another short prompt comes before the clock runs, so that nothing of
    this one is held."""
    asked = {k: v for k, v in question.items() if k not in ("prompt", "prompts", "held")}
    if "prompts" not in question:
        if not question.get("held"):
            model.predict(OTHER, raw=True, max_tokens=1)
        return stream(model, question["prompt"], asked)
    started, cpu = time.perf_counter(), time.process_time()
    found = model.predict(question["prompts"], **asked)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "answer_tokens": sum(one.usage.answer_tokens for one in found),
        "texts": [one.text for one in found],
    }


def exact_prompt(model: ChatModel, text: str, n_tokens: int) -> str:
    """A text that begins with words of `text` and has exactly so many tokens."""
    made = ""
    for word in text.split() * n_tokens:
        longer = f"{made} {word}".strip()
        n = len(model.prompt_ids(longer))
        if n <= n_tokens:
            made = longer
        if n == n_tokens:
            return made
    raise RuntimeError(f"no text of {n_tokens} tokens was found")


def main() -> None:
    given = options()
    model = edgelm.load(
        given["bundle"],
        variant=given["variant"],
        threads=given["threads"],
        speculate=bool(given.get("speculate")),
    )
    assert isinstance(model, ChatModel)
    prompt, n_long = given["prompt"], given.get("long_tokens")
    long_prompt = exact_prompt(model, prompt, n_long) if n_long else prompt
    answer(model, {"prompt": prompt, "max_tokens": 16})
    answer_all(
        lambda question: answer(model, question),
        prompt=prompt,
        prompt_ids=model.prompt_ids(prompt),
        long_prompt=long_prompt,
        long_prompt_ids=model.prompt_ids(long_prompt),
        versions=versions(ENGINES[model.variant.target]),
    )


if __name__ == "__main__":
    main()
