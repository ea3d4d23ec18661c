"""ONNX Runtime GenAI's own loop: append the prompt, generate token after token, decode each."""

from __future__ import annotations

import json
import time
from typing import Any

import onnxruntime_genai as genai
from protocol import Options, answer_all, options, versions


def answer(model: Any, tokenizer: Any, prompt_ids: list[int], max_tokens: int) -> dict[str, Any]:
    """`seconds` runs from the first token's text to the last one's."""
    started = time.perf_counter()
    params = genai.GeneratorParams(model)
    params.set_search_options(
        max_length=len(prompt_ids) + max_tokens, do_sample=False, batch_size=1
    )
    generator = genai.Generator(model, params)
    stream = tokenizer.create_stream()
    generator.append_tokens(prompt_ids)
    texts: list[str] = []
    first = 0.0
    while not generator.is_done():
        generator.generate_next_token()
        texts.append(stream.decode(generator.get_next_tokens()[0]))
        first = first or time.perf_counter()
    return {
        "first_s": first - started,
        "seconds": time.perf_counter() - first,
        "answer_tokens": len(texts),
        "text": "".join(texts),
    }


def main() -> None:
    given = options()
    config = genai.Config(given["model"])
    session = {"intra_op_num_threads": given["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)

    def work(question: Options) -> dict[str, Any]:
        ids = given["long_prompt_ids" if question["long"] else "prompt_ids"]
        return answer(model, tokenizer, ids, question["max_tokens"])

    work({"long": False, "max_tokens": 16})
    answer_all(work, versions=versions("onnxruntime-genai"))


if __name__ == "__main__":
    main()
