"""edgelm: `predict` from strings to labels, or the bare engine on the same batches."""

from __future__ import annotations

from typing import Any

from protocol import Options, options, read_texts, serve, versions

import edgelm
from edgelm.runtime.runner import plan_batches


def main() -> None:
    given = options()
    texts = read_texts(given["texts"])
    model = edgelm.load(given["bundle"], variant=given["variant"], threads=given["threads"])
    runner = model.runner
    tokens = runner.tokenizer.encode(texts)
    batches = [
        tokens.batch(indices, runner.tokenizer.limits.pad_id)
        for indices in plan_batches(tokens.lengths, runner.session.limits)
    ]

    def work(question: Options) -> Any:
        if question.get("engine"):
            return [runner.session.run(batch) for batch in batches]
        return [answer.label for answer in model.predict(texts)]  # type: ignore[union-attr]

    labels = work({})
    work({"engine": True})
    package = "onnxruntime" if given["variant"].startswith("onnx") else "llama-cpp-python"
    serve(work, labels=labels, versions=versions(package))


if __name__ == "__main__":
    main()
