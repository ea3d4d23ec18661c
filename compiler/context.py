"""What passes share: the recipe, and what earlier passes found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.cache import StageCache
from edgelm.compiler.chat.data import ChatData
from edgelm.compiler.chat.oracle import Oracle
from edgelm.compiler.data import Dataset
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.examples import Example
from edgelm.runtime.manifest import Measured, Parity, Pooling, Task, TextLimits
from edgelm.runtime.progress import Progress
from edgelm.runtime.tokenizer import Text
from edgelm.targets.base import Lowered

if TYPE_CHECKING:
    from edgelm.compiler.report.data import Search
    from edgelm.targets.costs import Table


@dataclass(frozen=True)
class Source:
    """The model as it came in."""

    folder: Path
    config: dict[str, Any]  # config.json
    digest: str  # of all files that decide its answers
    pooling: Pooling | None  # from its sentence-transformers files
    normalize: bool | None
    max_tokens: int  # that its positions and tokenizer allow
    prompts: tuple[str, ...] = ()  # names of those that its sentence-transformers files state

    @property
    def model_type(self) -> str:
        """`bert`, `roberta`, …"""
        return str(self.config.get("model_type", ""))


@dataclass(frozen=True)
class Trimmed:
    """What became of the model's vocabulary."""

    original: Source  # the model with its whole vocabulary
    report: dict[str, Any]  # tokens and size_bytes, before and after; coverage of evaluation texts


@dataclass(frozen=True)
class Sparsified:
    """What became of the merged model's weights."""

    whole_dir: Path  # the merged model
    report: dict[str, Any]  # method, pattern, layers, weights, zeros


@dataclass(frozen=True)
class Worst:
    """An evaluation text, or a prompt, on which a variant is farthest from the reference."""

    text: str
    reference: str
    answer: str
    difference: float  # KL divergence in nats, 1 - cosine, or the token at which answers part
    what: str = "difference"  # the name of that


@dataclass
class VariantState:
    """What is known of one variant so far."""

    name: str
    target: str
    precision: str
    folder: Path  # holding the lowered files
    lowered: Lowered
    outputs: NDArray[np.float32] | None = None  # (N, C) or (N, H) on the evaluation texts
    golden: NDArray[np.float32] | None = None
    parity: Parity | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    worst: tuple[Worst, ...] = ()
    failures: tuple[str, ...] = ()  # limits that it misses
    measured: Measured | None = None


@dataclass
class Context:
    """Filled by the passes, in their order; a pass asserts what it needs."""

    recipe: Recipe
    cache: StageCache
    progress: Progress
    search: Search | None = None  # that chose the recipe
    digests: dict[str, str] = field(default_factory=dict[str, str])  # pass -> its stage's key
    unpacked: Path | None = None  # the directory made of a .gguf file
    source: Source | None = None
    trimmed: Trimmed | None = None  # then `source` is the model with the trimmed vocabulary
    data: Dataset | None = None
    chat: ChatData | None = None  # generation: in place of `data`
    task: Task | None = None
    text: TextLimits | None = None
    training: dict[str, Any] = field(default_factory=dict[str, Any])  # history, seconds, merge
    taught: Path | None = None  # the teacher's answers to the texts of a student
    kept_layers: list[int] = field(default_factory=list[int])  # of the teacher, in its student
    original: NDArray[np.float32] | None = None  # before shrinking, of the evaluation texts
    original_metrics: dict[str, float] = field(default_factory=dict[str, float])
    model_dir: Path | None = None  # Hugging Face model that targets lower
    sparsified: Sparsified | None = None  # then `model_dir` is the model with zeros
    model_key: str = ""  # digest of what made it; whoever sets model_dir sets this
    tokenizer_dir: Path | None = None
    imatrix: Path | None = None  # importance matrix for GGUF's quantized types
    # of the precision auto, by target: what errors of each matrix cost, what each type of each
    # matrix takes and costs, and the types chosen
    curvatures: dict[str, Path] = field(default_factory=dict[str, Path])
    tables: dict[str, Table] = field(default_factory=dict)
    types: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    # variant -> Hugging Face model of values that it can hold, and how that was found
    recovered: dict[str, Path] = field(default_factory=dict[str, Path])
    recoveries: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    golden: list[Text] = field(default_factory=list[Text])
    oracle: Oracle | None = None  # what the reference says in generation
    reference: NDArray[np.float32] | None = None  # (N, C) or (N, H), of the evaluation texts
    reference_metrics: dict[str, float] = field(default_factory=dict[str, float])
    variants: dict[str, VariantState] = field(default_factory=dict[str, VariantState])
    notes: list[str] = field(default_factory=list[str])

    @property
    def data_digest(self) -> str:
        """sha256 of the data, whatever the task."""
        data = self.data or self.chat
        assert data is not None
        return data.digest()

    def note(self, text: str) -> None:
        """Tell the user, now and in the report."""
        self.notes.append(text)
        self.progress.note(f"note: {text}")


def as_text(example: Example) -> Text:
    """The example as a classifier's `predict` takes it."""
    return example.text if example.pair is None else (example.text, example.pair)


def eval_texts(context: Context) -> list[Text]:
    """The N evaluation texts. For embeddings the second texts of pairs follow all the first."""
    assert context.data and context.task
    examples = context.data.eval
    if context.task.kind == "text-classification":
        return [as_text(e) for e in examples]
    firsts: list[Text] = [e.text for e in examples]
    return firsts + [e.pair for e in examples if e.pair is not None]


def truth_matrix(task: Task, examples: tuple[Example, ...]) -> NDArray[np.bool_]:
    """Given labels, (N, C)."""
    index = {label: i for i, label in enumerate(task.labels)}
    truth = np.zeros((len(examples), len(task.labels)), bool)
    for row, example in enumerate(examples):
        for label in example.labels or ():
            truth[row, index[label]] = True
    return truth
