"""The merged model by optimum-onnx: exported, then int8 dynamic by its avx512_vnni preset."""

from __future__ import annotations

from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from protocol import options, say, versions


def main() -> None:
    given = options()
    folder = Path(given["folder"])
    model = ORTModelForSequenceClassification.from_pretrained(given["model"], export=True)
    model.save_pretrained(folder / "fp32")
    quantizer = ORTQuantizer.from_pretrained(folder / "fp32")
    preset = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=folder / "int8", quantization_config=preset)
    say(
        files=["int8/model_quantized.onnx"],
        versions=versions("optimum-onnx", "optimum", "transformers", "torch", "onnxruntime"),
    )


if __name__ == "__main__":
    main()
