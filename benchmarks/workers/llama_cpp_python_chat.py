"""llama-cpp-python's own loop: `create_completion`, streamed, greedy."""

from __future__ import annotations

import time
from typing import Any

from llama_cpp import Llama
from protocol import Options, answer_all, options, versions


def answer(model: Llama, prompt_ids: list[int], max_tokens: int) -> dict[str, Any]:
    """`seconds` runs from the first piece to the last."""
    model.reset()  # or the prompt would be taken from the last round
    started = time.perf_counter()
    pieces = model.create_completion(
        prompt_ids, max_tokens=max_tokens, temperature=0.0, repeat_penalty=1.0, stream=True
    )
    texts = [next(pieces)["choices"][0]["text"]]  # type: ignore[call-overload]
    first = time.perf_counter()
    texts += [piece["choices"][0]["text"] for piece in pieces]  # type: ignore[index]
    return {
        "first_s": first - started,
        "seconds": time.perf_counter() - first,
        "answer_tokens": model.n_tokens - len(prompt_ids) + 1,
        "text": "".join(texts),
    }


def main() -> None:
    given = options()
    threads = given["threads"]
    model = Llama(
        given["model"], n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def work(question: Options) -> dict[str, Any]:
        return answer(model, given["prompt_ids"], question["max_tokens"])

    work({"max_tokens": 16})
    answer_all(work, versions=versions("llama-cpp-python"))


if __name__ == "__main__":
    main()
