"""The sections of a recipe that make the model smaller: `prune` and `distil`; see recipe.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgelm.compiler.options import option

SparsityPattern = Literal["unstructured", "2:4"]
SparsityMethod = Literal["magnitude", "wanda"]
LayerChoice = Literal["even", "measured"]


@dataclass(frozen=True)
class PruneConfig:
    """What of the model is left out: tokens before it is fine-tuned; later layers, heads, columns,
    after which it learns from what it was (see `distil`); single weights last."""

    vocab: bool = option(
        False,
        "Encoders: keep only the tokens that the training texts use, special tokens and single "
        "characters. Texts of kept tokens alone are answered as before, others fall into smaller "
        "pieces.",
        flag="--trim-vocab",
    )
    vocab_size: int | None = option(
        None, "At most this many tokens, the most frequent first; all used ones when left out.",
        flag="--vocab-size",
    )  # fmt: skip
    vocab_texts: str | None = option(
        None,
        "Plain text, a text a line and with no labels, whose tokens are kept beside those of the "
        "training texts.",
        flag="--vocab-texts",
    )
    sparsity: float | None = option(
        None,
        "Classification and embeddings: this share of the weights of each linear layer becomes "
        "zero, those that matter least. No engine here is faster or smaller by it.",
        flag="--sparsity",
    )
    pattern: SparsityPattern = option(
        "unstructured",
        "Where the zeros may be: anywhere, or 2 of each 4 neighbours, with a sparsity of 0.5.",
        flag="--sparsity-pattern",
    )
    method: SparsityMethod = option(
        "wanda",
        "How much a weight matters: its magnitude, or that times the norm of what it is "
        "multiplied with on training texts (Wanda).",
        flag="--sparsity-method",
    )
    layers: float | None = option(
        None,
        "Layers left out; under 1 a share, else a number.",
        flag="--prune-layers",
    )
    layer_choice: LayerChoice = option(
        "even",
        "Which layers go: evenly spread ones, or those that change the hidden states of a sample "
        "of the texts least, by 1 - cosine of what goes into a layer and what comes out "
        "(ShortGPT).",
        flag="--prune-layer-choice",
    )
    heads: float | None = option(
        None,
        "Attention heads that each layer loses, those that matter least; under 1 a share, else a "
        "number. GGUF files keep an encoder's as zeros and gain nothing. Of decoders a head of "
        "keys and values goes with all heads of queries that look through it.",
        flag="--prune-heads",
    )
    ffn: float | None = option(
        None,
        "Feed-forward columns that each layer loses, those that matter least; under 1 a share, "
        "else a number.",
        flag="--prune-ffn",
    )


@dataclass(frozen=True)
class DistilConfig:
    """A smaller model, the student, learns from the (fine-tuned) model, its teacher, and takes its
    place: with `prune`, or with another checkpoint. The teacher is asked once for each text."""

    student: str | None = option(
        None,
        "A smaller Hugging Face directory, or `pkg:PACKAGE/PATH`, with the same vocabulary, in "
        "place of a pruned model.",
        flag="--student",
    )
    unlabelled: str | None = option(
        None, "Plain text, a text a line, to ask the teacher about beside the training texts.",
        flag="--unlabelled",
    )  # fmt: skip
    epochs: float | None = option(
        None, "Passes over all texts; 8, for generation 3, when left out.", flag="--distil-epochs"
    )
    learning_rate: float | None = option(
        None, "Peak learning rate; 3e-4, for generation 2e-4, when left out.",
        flag="--distil-learning-rate",
    )  # fmt: skip
    temperature: float | None = option(
        None,
        "Softens the labels, or next tokens, of teacher and student alike; 2, for generation 1, "
        "when left out.",
        flag="--distil-temperature",
    )
    direction: Literal["forward", "reverse"] = option(
        "forward",
        "Generation: forward is KL(teacher || student), by which the student covers all that the "
        "teacher may say; reverse is KL(student || teacher), by which it stays with what the "
        "teacher says most.",
        flag="--distil-direction",
    )
    samples: float = option(
        0.0,
        "Generation: share of the batches, 0 to 1, whose answers the student draws itself at "
        "temperature 1, for the teacher to judge their tokens (GKD). The teacher is in memory "
        "then, and asked anew each time: nothing of it can be kept in the cache. Each such batch "
        "costs the generation of its answers.",
        flag="--distil-samples",
    )
    label_weight: float = option(
        0.5,
        "Weight of the loss on given labels, or answers; that on the teacher's is 1.",
        flag="--distil-label-weight",
    )
    hidden_weight: float = option(
        1.0,
        "Weight of the loss on the teacher's hidden states behind each layer that is kept; 2 "
        "bytes a value in the cache, none with 0. Not for generation, where each token would "
        "have them.",
        flag="--distil-hidden-weight",
    )
    relation_weight: float = option(
        0.0,
        "Encoders: weight of the loss on how tokens attend in the last layer, by the relations of "
        "queries, keys and values (MiniLM), which a student of any width or number of heads can "
        "learn; 6 bytes a token and value of the teacher's width in the cache.",
        flag="--distil-relation-weight",
    )
    steps: int = option(
        1, "Heads and columns are left out in so many steps, with the epochs shared out between.",
        flag="--distil-steps",
    )  # fmt: skip
    max_drop: float | None = option(
        None,
        "Largest loss of each variant's metric against the model before pruning and distilling, in "
        "0 to 1; of embeddings without scored pairs that is the mean cosine with those before. "
        "Generation: largest rise of perplexity on the evaluation data, as a share of that of the "
        "model before. 0.02, for generation 0.25, when left out.",
        flag="--max-original-drop",
    )
