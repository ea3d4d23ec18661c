"""edgelm: `predict` from strings to labels, or the bare engine on the same batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from protocol import Options, options, read_texts, serve, versions

import edgelm
from edgelm.runtime.runner import plan_batches


def main() -> None:
    given = options()
    texts = read_texts(given["texts"])
    model = edgelm.load(given["bundle"], variant=given["variant"], threads=given["threads"])
    runner = model.runner
    session, tokens = runner.session, runner.tokenizer.encode(texts)
    plan = plan_batches(tokens.lengths, session.limits, at_least=session.parallel)
    batches = [tokens.batch(indices, runner.tokenizer.limits.pad_id) for indices in plan]
    pool = ThreadPoolExecutor(session.parallel)

    def work(question: Options) -> Any:
        if question.get("engine"):
            return list(pool.map(lambda batch: session.run(batch, shared=True), batches))
        return [answer.label for answer in model.predict(texts)]  # type: ignore[union-attr]

    labels = work({})
    work({"engine": True})
    package = "onnxruntime" if given["variant"].startswith("onnx") else "llama-cpp-python"
    serve(work, labels=labels, versions=versions(package))


if __name__ == "__main__":
    main()
