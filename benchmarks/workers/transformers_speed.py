"""A transformers text-classification pipeline: on torch, or on optimum-onnx's ORT model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from protocol import Options, options, read_texts, serve, versions
from transformers import AutoTokenizer, pipeline


def load(given: Options) -> Any:
    """The pipeline, as the documentation of the two projects has it."""
    tokenizer = AutoTokenizer.from_pretrained(given["hugging_face"])
    if given["engine"] == "torch":
        return pipeline("text-classification", model=given["model"], tokenizer=tokenizer)
    import onnxruntime as ort
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from optimum.onnxruntime import pipeline as ort_pipeline

    session = ort.SessionOptions()
    session.intra_op_num_threads = given["threads"]
    file = Path(given["model"])
    model = ORTModelForSequenceClassification.from_pretrained(
        file.parent, file_name=file.name, session_options=session
    )
    return ort_pipeline("text-classification", model=model, tokenizer=tokenizer)


def main() -> None:
    given = options()
    torch.set_num_threads(given["threads"])
    texts = read_texts(given["texts"])
    pipe = load(given)
    max_tokens = given["max_tokens"]

    def work(question: Options) -> list[str]:
        part = texts[: question["n_texts"]] if "n_texts" in question else texts
        answers = pipe(
            part, batch_size=question["batch_size"], truncation=True, max_length=max_tokens
        )
        return [answer["label"] for answer in answers]

    labels = work({"batch_size": 16})
    packages = ["transformers", "torch"]
    if given["engine"] != "torch":
        packages = ["optimum-onnx", "optimum", *packages, "onnxruntime"]
    serve(work, labels=labels, versions=versions(*packages))


if __name__ == "__main__":
    main()
