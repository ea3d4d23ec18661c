"""The sections of a recipe but for those of smaller models, in shrinking.py; see recipe.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgelm.compiler.options import option

Method = Literal["auto", "lora", "full", "none"]
RowKind = Literal["auto", "messages", "instruction", "prompt", "text"]
Varied = Literal["targets", "vocabulary", "layers", "ffn", "recovery"]
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
        "gguf:auto: largest size of the variant's files, such as 90MB (MB: a million bytes). Each "
        "matrix gets the type that loses least of the task within it.",
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


@dataclass(frozen=True)
class MeasureConfig:
    """What the latency of a variant of classification or embeddings is measured on."""

    batch: int = option(1, "Texts in one call.", flag="--latency-batch")
    tokens: int | None = option(
        None, "Tokens of each text, about; the median evaluation text when left out.",
        flag="--latency-tokens",
    )  # fmt: skip


@dataclass(frozen=True)
class BudgetConfig:
    """What the bundle has to meet. With one of the first five `edgelm compile` searches over
    precisions, targets and smaller models for the best that does, as `edgelm tune` does, and puts
    that one variant into the bundle. Keys that the recipe states are left as stated; several
    targets are all tried."""

    max_size: str | None = option(
        None, "Largest size of a variant's files: 8MB (10^6 bytes), 8MiB (2^20), kB, GB, …",
        flag="--max-size",
    )  # fmt: skip
    max_latency: str | None = option(
        None, "Longest median latency: 3ms. Generation: of the first token.", flag="--max-latency"
    )
    max_memory: str | None = option(
        None, "Largest memory of a process that answers with the variant: 200MB.",
        flag="--max-memory",
    )  # fmt: skip
    max_drop: float | None = option(
        None,
        "Largest loss against the model with nothing left out, in points, hundredths of the "
        "metric: accuracy, micro F1, Spearman correlation, or the mean cosine of embeddings "
        "without scores. Generation: per cent of perplexity.",
        flag="--max-drop",
    )
    min_metric: float | None = option(
        None, "Least metric, in 0 to 1; not for generation.", flag="--min-metric"
    )
    vary: list[Varied] = option(
        ["targets", "vocabulary", "layers", "ffn", "recovery"],
        "What the search may vary where the recipe states nothing: targets and precisions; an "
        "encoder's vocabulary, layers and feed-forward columns; recovery by training.",
        flag="--vary", many=True,
    )  # fmt: skip
    time_budget: str | None = option(
        None, "After this time nothing more is begun, and the best so far is taken: 60m, 2h.",
        flag="--time-budget",
    )  # fmt: skip
    halving: int = option(
        3,
        "Begin all trainings with few epochs, keep the best of so many, train these so many times "
        "longer, and so on; 1 trains every model in full. Where latency and memory are free, the "
        "model with least left out is trained in full before.",
        flag="--halving",
    )
    device_profile: str | None = option(
        None,
        "A file of `edgelm profile`, made on another device, whose latency and memory are taken "
        "in place of this machine's.",
        flag="--device-profile",
    )
    study: str | None = option(
        None,
        "Share the search with the same on other machines, through a storage of optuna: "
        "sqlite:///FILE, postgresql://USER@HOST/NAME, mysql://…, or the path of a journal file, "
        "which may be on NFS. Left out: with those on the same cache_dir.",
        flag="--study",
    )

    @property
    def has_bounds(self) -> bool:
        """Whether there is anything to meet."""
        bounds = (self.max_size, self.max_latency, self.max_memory, self.max_drop, self.min_metric)
        return any(bound is not None for bound in bounds)


@dataclass(frozen=True)
class LimitsConfig:
    """How far a variant may be from the Hugging Face reference. Left out: by precision."""

    min_agreement: float | None = option(
        None, "Least share of equal labels; generation: of equal likeliest tokens."
    )
    max_drop: float | None = option(None, "Largest loss of the metric, in 0 to 1.")
    max_kl: float | None = option(None, "Largest mean KL divergence, in nats.")
    min_cosine: float | None = option(None, "Least mean cosine of embeddings.")
    max_kl_p999: float | None = option(
        None, "Generation: largest 99.9th percentile of a token's KL divergence, in nats."
    )
    max_perplexity_ratio: float | None = option(
        None, "Generation: largest perplexity, as a multiple of the reference's."
    )
    min_gain_kept: float | None = option(
        None, "Generation: least share that is left of what fine-tuning lowered the loss by."
    )


@dataclass(frozen=True)
class VerifyConfig:
    """Each variant is run on its real engine and compared with the reference; fails closed."""

    min_agreement: float | None = option(
        None,
        "Least share of equal labels (generation: of equal likeliest tokens), for all variants; by "
        "precision when left out.",
        flag="--min-agreement",
    )
    max_drop: float | None = option(
        None, "Largest loss of the metric, in 0 to 1; by precision when left out.",
        flag="--max-metric-drop",
    )  # fmt: skip
    max_kl: float | None = option(
        None, "Largest mean KL divergence, in nats; by precision when left out.",
        flag="--max-kl",
    )  # fmt: skip
    min_cosine: float | None = option(
        None, "Least mean cosine of embeddings; by precision when left out.",
        flag="--min-cosine",
    )  # fmt: skip
    max_kl_p999: float | None = option(
        None,
        "Generation: largest 99.9th percentile of a token's KL divergence, in nats; by precision "
        "when left out.",
        flag="--max-kl-p999",
    )
    max_perplexity_ratio: float | None = option(
        None,
        "Generation: largest perplexity, as a multiple of the reference's; by precision when left "
        "out.",
        flag="--max-perplexity-ratio",
    )
    min_gain_kept: float | None = option(
        None,
        "Generation: least share that is left of what fine-tuning lowered the loss by; by "
        "precision when left out.",
        flag="--min-gain-kept",
    )
    eval_tokens: int = option(
        2048,
        "Generation: evaluation tokens of which whole distributions are compared; each takes 2 "
        "bytes for every word of the vocabulary in the cache.",
        flag="--eval-tokens",
    )
    eval_answers: int = option(
        50, "Generation: prompts whose greedy answers are compared, at least 1.",
        flag="--eval-answers",
    )  # fmt: skip
    limits: dict[str, LimitsConfig] = field(
        default_factory=dict[str, LimitsConfig],
        metadata={
            "help": "Limits of single variants, by target: `onnx:int8: {max_drop: 0.02}`.",
            "flag": None,
            "many": False,
        },
    )
