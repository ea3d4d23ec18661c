"""The merged model by ONNX Runtime's own fusions: through optimum-onnx at its highest level for
CPUs, and by the legacy exporter with onnxruntime.transformers; each as float32 and dynamic int8."""

from __future__ import annotations

from pathlib import Path

import torch
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
from optimum.onnxruntime.configuration import AutoOptimizationConfig
from protocol import options, say, versions
from transformers import AutoModelForSequenceClassification

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


def by_optimum(model: str, folder: Path) -> None:
    loaded = ORTModelForSequenceClassification.from_pretrained(model, export=True)
    loaded.save_pretrained(folder / "plain")
    level = AutoOptimizationConfig.O3()
    ORTOptimizer.from_pretrained(loaded).optimize(
        save_dir=folder / "optimum", optimization_config=level, file_suffix="fp32"
    )
    quantize(folder / "optimum")


def quantize(folder: Path) -> None:
    """model_fp32.onnx -> model_int8.onnx. What optimum's presets call, but for the type of values
    that shape inference does not find behind fused operators, which they cannot be told."""
    quantize_dynamic(
        str(folder / "model_fp32.onnx"),
        str(folder / "model_int8.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


def by_onnxruntime(model: str, folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(
        model, attn_implementation="eager", return_dict=False
    ).eval()
    out = folder / "legacy"
    out.mkdir(exist_ok=True)
    sample = torch.ones(2, 9, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in NAMES} | {"logits": {0: "batch"}}
    torch.onnx.export(
        loaded,
        (sample, sample.clone(), torch.zeros_like(sample)),
        str(out / "exported.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=NAMES,
        output_names=["logits"],
        dynamic_axes=axes,
    )
    config = loaded.config
    fused = optimize_model(
        str(out / "exported.onnx"),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        optimization_options=FusionOptions("bert"),
        opt_level=1,
    )
    fused.save_model_to_file(str(out / "model_fp32.onnx"))
    found = fused.get_fused_operator_statistics()
    assert found["Attention"] == config.num_hidden_layers, found
    quantize(out)


def main() -> None:
    given = options()
    folder = Path(given["folder"])
    by_optimum(given["model"], folder)
    by_onnxruntime(given["model"], folder)
    say(versions=versions("optimum-onnx", "optimum", "transformers", "torch", "onnxruntime"))


if __name__ == "__main__":
    main()
