"""The merged model by torch.onnx and quantize_dynamic: int8 weights, a scale for each channel."""

from __future__ import annotations

from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from protocol import options, say, versions
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Logits(torch.nn.Module):
    """Tensors in, one tensor out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits


def main() -> None:
    given = options()
    folder = Path(given["folder"])
    model = AutoModelForSequenceClassification.from_pretrained(given["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    sample = tokenizer(["one text", "and a somewhat longer one"], padding=True, return_tensors="pt")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        Logits(model),
        tuple(sample[name] for name in NAMES),
        str(folder / "model.onnx"),
        dynamo=True,
        input_names=NAMES,
        output_names=["logits"],
        dynamic_shapes={name: {0: batch, 1: length} for name in NAMES},
        external_data=False,
    )
    quant_pre_process(
        str(folder / "model.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True
    )
    quantize_dynamic(
        str(folder / "prepared.onnx"),
        str(folder / "int8.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    say(files=["int8.onnx"], versions=versions("torch", "transformers", "onnx", "onnxruntime"))


if __name__ == "__main__":
    main()
