"""Plain ONNX Runtime and tokenizers, as a good user writes it: sort by length, pad, run, argmax."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from protocol import Options, options, read_texts, serve, versions
from tokenizers import Tokenizer


class Classifier:
    """The whole of it."""

    def __init__(self, given: Options) -> None:
        folder = Path(given["hugging_face"])
        session = ort.SessionOptions()
        session.intra_op_num_threads = given["threads"]
        self.session = ort.InferenceSession(
            given["model"], session, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(given["max_tokens"])
        self.tokenizer.no_padding()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]

    def __call__(self, texts: list[str], batch_size: int) -> list[str]:
        encodings = self.tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        found = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            B, T = len(part), len(encodings[part[-1]].ids)
            ids = np.zeros((B, T), np.int64)  # BERT's padding is 0
            mask = np.zeros((B, T), np.int64)
            for b, i in enumerate(part):
                row = encodings[i].ids
                ids[b, : len(row)] = row
                mask[b, : len(row)] = 1
            feeds = {
                "input_ids": ids,
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(ids),
            }
            logits = self.session.run(None, {name: feeds[name] for name in self.inputs})[0]
            for i, best in zip(part, logits.argmax(axis=1).tolist(), strict=True):
                found[i] = self.labels[best]
        return found


def main() -> None:
    given = options()
    texts = read_texts(given["texts"])
    classify = Classifier(given)

    def work(question: Options) -> list[str]:
        part = texts[: question["n_texts"]] if "n_texts" in question else texts
        return classify(part, question["batch_size"])

    labels = work({"batch_size": 64})
    serve(work, labels=labels, versions=versions("onnxruntime", "tokenizers"))


if __name__ == "__main__":
    main()
