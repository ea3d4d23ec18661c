"""The sections of a recipe about what variants are measured on, and held to; see recipe.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgelm.compiler.options import option

Varied = Literal["targets", "vocabulary", "layers", "ffn", "recovery"]


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
