"""A float32 ONNX file as OpenVINO's float32 and int8: NNCF's quantization for transformers, which
is what optimum-intel runs, calibrated on training texts."""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import openvino
from protocol import options, read_texts, say, versions
from tokenizers import Tokenizer

N_CALIBRATION = 300  # NNCF's own default


def main() -> None:
    given = options()
    folder = Path(given["folder"])
    model = openvino.Core().read_model(given["onnx"])
    tokenizer = Tokenizer.from_file(str(Path(given["hugging_face"]) / "tokenizer.json"))
    tokenizer.enable_truncation(given["max_tokens"])
    tokenizer.no_padding()
    names = [port.get_any_name() for port in model.inputs]

    def feeds(text: str) -> dict[str, np.ndarray]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        known = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        return {name: known[name] for name in names}

    texts = read_texts(given["texts"])[:N_CALIBRATION]
    openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(texts, feeds),
        subset_size=N_CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)
    say(versions=versions("openvino", "nncf"))


if __name__ == "__main__":
    main()
