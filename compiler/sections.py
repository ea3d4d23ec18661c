"""The sections of a recipe but for those of smaller models, in shrinking.py; see recipe.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgelm.compiler.options import option

Method = Literal["auto", "lora", "full", "none"]
RowKind = Literal["auto", "messages", "instruction", "prompt", "text"]
Calibration = Literal["minmax", "entropy", "percentile"]
RecoverMethod = Literal["auto", "none", "round", "train"]


@dataclass(frozen=True)
class DataConfig:
    """Labelled texts or conversations: csv, tsv, jsonl, json, parquet, a folder, or a `datasets`
    directory."""

    train: str | None = option(None, "Training data.", flag="--train")
    eval: str | None = option(
        None, "Evaluation data; without it a stratified part of the training data is held out.",
        flag="--eval",
    )  # fmt: skip
    text: str | None = option(
        None, "Column of the text; found by its usual names when left out.", flag="--text-column"
    )
    pair: str | None = option(
        None, "Column of the second text, for sentence pairs.", flag="--pair-column"
    )
    label: str | None = option(
        None, "Column of the label; found by its usual names when left out.", flag="--label-column"
    )
    multi_label: bool | None = option(
        None, "Texts carry sets of labels; found out from the data when left out.",
        flag="--multi-label",
    )  # fmt: skip
    label_separator: str = option(
        ";", "What stands between the labels of one text in a csv or tsv file.",
        flag="--label-separator",
    )  # fmt: skip
    eval_fraction: float = option(
        0.1, "Share held out when there is no evaluation data.", flag="--eval-fraction"
    )
    kind: RowKind = option(
        "auto",
        "Generation: what a row is. messages (also ShareGPT's conversations), instruction (with "
        "output, and input), prompt (with completion) or text; found by the columns when left out.",
        flag="--data-kind",
    )


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning through transformers' Trainer."""

    method: Method = option(
        "auto",
        "lora, full, none (the model is already fine-tuned), or auto: lora for classification and "
        "generation when there is training data, none for embeddings.",
        flag="--train-method",
    )
    epochs: float | None = option(
        None, "Passes over the training data, at most; 8, for generation 3, when left out.",
        flag="--epochs",
    )  # fmt: skip
    batch_size: int | None = option(
        None,
        "Rows in one forward pass: texts, or for generation, packed, sequences of up to "
        "max_tokens; 32, for generation 4, when left out.",
        flag="--batch-size",
    )
    gradient_accumulation: int = option(
        1, "Forward passes in one optimizer step.", flag="--gradient-accumulation"
    )
    gradient_checkpointing: bool = option(
        False, "Half the memory for a third more time: activations are computed twice.",
        flag="--gradient-checkpointing",
    )  # fmt: skip
    packing: bool = option(
        True,
        "Generation: put short rows together into sequences of max_tokens at most, and of no more "
        "than the longest row or 512; they do not see each other.",
        flag="--packing",
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate; 2e-3 for lora and 1e-4 for full, for generation 5e-4 and 5e-5, when "
        "left out.",
        flag="--learning-rate",
    )
    warmup: float = option(0.06, "Share of the steps with a rising learning rate.", flag="--warmup")
    weight_decay: float = option(0.01, "Decoupled weight decay.", flag="--weight-decay")
    early_stop: int = option(
        3, "Stop after this many epochs without a better metric; 0 never stops.",
        flag="--early-stop",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "Arithmetic of training; auto is bf16 where the processor has it.",
        flag="--train-precision",
    )  # fmt: skip
    class_weights: Literal["auto", "balanced", "none"] = option(
        "auto",
        "Weigh rare labels up; auto does it when the commonest label has over 5 x the texts "
        "of the rarest.",
        flag="--class-weights",
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = option(16, "Rank of the adapters.", flag="--lora-rank")
    alpha: int | None = option(None, "Scale; the rank when left out.", flag="--lora-alpha")
    dropout: float | None = option(
        None, "Dropout before the adapters; 0.05, for generation 0, when left out.",
        flag="--lora-dropout",
    )  # fmt: skip
    targets: list[str] = option(
        [], "Names of the linear layers; all of the encoder's or decoder's when left out.",
        flag="--lora-target", many=True,
    )  # fmt: skip


@dataclass(frozen=True)
class QuantizeConfig:
    """How weights and activations are quantized."""

    calibration: Calibration = option(
        "minmax", "How int8-static finds the ranges of activations.", flag="--calibration"
    )
    calibration_texts: int = option(
        256, "Training texts used for calibration.", flag="--calibration-texts"
    )
    smooth: float | None = option(
        None,
        "Classification and embeddings, onnx:int8 and onnx:int8-static: outliers move from "
        "activations into weights by this strength, 0 to 1, usually 0.5, as seen on the "
        "calibration texts (SmoothQuant).",
        flag="--smooth",
    )
    device: Literal["any", "vnni"] = option(
        "any",
        "Processors that int8 must answer alike on. `any` keeps weights in 7 bits, so that "
        "processors without VNNI do not saturate; `vnni` uses all 8.",
        flag="--int8-device",
    )
    imatrix: str = option(
        "auto",
        "GGUF: how much each column of a matrix weighs when it is rounded. auto computes an "
        "importance matrix from the training texts for types under 6 bits; none; or a file of "
        "llama-imatrix or of an earlier compile.",
        flag="--imatrix",
    )
    imatrix_tokens: int = option(
        20_000,
        "Tokens that an importance matrix, and for auto what errors cost, is computed from.",
        flag="--imatrix-tokens",
    )
    calibration_file: str | None = option(
        None, "Plain text to compute an importance matrix from, in place of training texts.",
        flag="--calibration-file",
    )  # fmt: skip
    auto_size: str | None = option(
        None,
        "gguf:auto and onnx:auto: largest size of the variant's files, such as 90MB (MB: a million "
        "bytes). Each matrix gets the type that loses least of the task within it.",
        flag="--auto-size",
    )
    auto_types: list[str] = option(
        [], "gguf:auto: types that it may choose from; all that fit when left out.",
        flag="--auto-type", many=True,
    )  # fmt: skip
    tensor_types: dict[str, str] = field(
        default_factory=dict[str, str],
        metadata={
            "help": "GGUF: types of single tensors in quantized variants, by a regular expression "
            'searched in their names: `"ffn_down": q6_k`. The first that fits decides.',
            "flag": None,
            "many": False,
        },
    )


@dataclass(frozen=True)
class RecoverConfig:
    """What a variant lost by its quantizer is won back: its weights move on the quantizer's grid,
    so that it answers like the float model. Scales, size and speed of the files stay."""

    method: RecoverMethod = option(
        "auto",
        "round: each weight's rounding error is made up for by those not yet rounded (GPTQ), over "
        "training texts; train: that, then training against the float model with the exact "
        "quantizer in the forward pass, which takes as long as fine-tuning; auto: round for "
        "variants of 4 bits where there is training data, none for others; none. Variants that "
        "cannot be recovered are left as they are.",
        flag="--recover",
    )
    epochs: float = option(
        1.0, "train: passes over the training data, for each variant.", flag="--recover-epochs"
    )
    batch_size: int | None = option(
        None, "Rows in one forward pass; that of train when left out.", flag="--recover-batch-size"
    )
    learning_rate: float = option(1e-4, "Peak learning rate.", flag="--recover-learning-rate")
    rounding_tokens: int = option(
        8192, "Tokens of the training texts that roundings are weighed by.",
        flag="--recover-rounding-tokens",
    )  # fmt: skip


@dataclass(frozen=True)
class GgufConfig:
    """What concerns GGUF files alone."""

    converter: str | None = option(
        None,
        "llama.cpp's own convert_hf_to_gguf.py, or the folder of its checkout, which is run to "
        "write the file, in place of edgelm's own tables: for architectures that these lack.",
        flag="--converter",
    )
    split_size_mb: int | None = option(
        None,
        "Split models over files of at most so many MB (10^6 bytes), in llama.cpp's layout; one "
        "file when left out. A larger tensor, and the first file's vocabulary, stay whole.",
        flag="--split-size-mb",
    )
