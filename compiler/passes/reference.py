"""reference: what the merged Hugging Face model answers; the oracle for every variant.

Where weights were pruned and nothing trained after, the model before that answers: with all its
weights, or its whole vocabulary.
Also writes the bundle's tokenizer and proves that it gives the model's own token ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.context import Context, eval_texts, truth_matrix
from edgelm.compiler.golden import golden_texts
from edgelm.compiler.hf import (
    load_model,
    load_tokenizer,
    reference_outputs,
    torch_threads,
    versions,
)
from edgelm.compiler.nasty import NASTY
from edgelm.compiler.passes import Pass
from edgelm.compiler.training import is_trained
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.manifest import TextLimits
from edgelm.runtime.metrics import classification_metrics, cosine, spearman
from edgelm.runtime.tokenizer import FILE_NAME, Text, Tokenizer

ORIGINAL_COSINE = "original_cosine"  # the metric's name


class Reference(Pass):
    """Sets context.reference, .reference_metrics, .tokenizer_dir and .golden."""

    name = "reference"

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.model_dir and context.data
        return {
            "model": context.model_key,
            "data": context.data.digest(),
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.task and context.text
        tokenizer = load_tokenizer(context.model_dir)
        (folder / "tokenizer").mkdir()
        write_tokenizer(tokenizer, folder / "tokenizer")
        texts = eval_texts(context)
        nasty: list[Text] = [(t, t[::-1]) for t in NASTY] if context.task.pair else list(NASTY)
        check_token_ids(tokenizer, Tokenizer(folder / "tokenizer", context.text), texts + nasty)
        answering = oracle_dir(context)
        model = load_model(answering, context.task, new_head=False)
        with torch_threads(context.recipe.threads):
            outputs = reference_outputs(
                model,
                load_tokenizer(answering),
                context.task,
                texts,
                context.text.max_tokens,
                context.progress.advance,
            )
        np.save(folder / "outputs.npy", outputs)
        golden = json.dumps(golden_texts(texts, nasty))
        (folder / "golden.json").write_text(golden, encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        context.golden = [tuple(t) if isinstance(t, list) else t for t in golden]
        context.tokenizer_dir = folder / "tokenizer"
        context.reference = outputs = np.load(folder / "outputs.npy")
        context.reference_metrics = metrics_of(context, outputs)


def oracle_dir(context: Context) -> Path:
    """The Hugging Face model that variants have to answer like."""
    assert context.model_dir is not None
    was_trained = is_trained(context.recipe) or context.original is not None  # as a student
    if context.trimmed is not None and not was_trained:
        return context.trimmed.original.folder
    if context.sparsified is not None:
        return context.sparsified.whole_dir
    return context.model_dir


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the fast tokenizer's own file, with no truncation and no padding in it."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(folder / FILE_NAME))


def check_token_ids(tokenizer: Any, runtime: Tokenizer, texts: list[Text]) -> None:
    """Raise VerificationError unless the runtime's token ids are the Hugging Face tokenizer's."""
    limits: TextLimits = runtime.limits
    ours = runtime.encode(texts)
    for i, text in enumerate(texts):
        # in lists, as the reference is asked: alone, an empty second text is taken for none
        first, second = text if isinstance(text, tuple) else (text, None)
        theirs = tokenizer(
            [first],
            None if second is None else [second],
            truncation=True,
            max_length=limits.max_tokens,
            return_token_type_ids=limits.type_ids,
        )
        ids: list[int] = theirs["input_ids"][0]
        same = ours.rows[i] == ids
        if same and ours.type_rows is not None:
            same = ours.type_rows[i] == theirs["token_type_ids"][0]
        if not same:
            raise VerificationError(
                f"token ids of {str(text)[:80]!r} differ: Hugging Face gives "
                f"{ids[:16]}, the bundle's tokenizer {ours.rows[i][:16]}",
                hint="the model's tokenizer does more than its tokenizer.json says",
            )


def metrics_of(context: Context, outputs: NDArray[np.float32]) -> dict[str, float]:
    """Metrics of raw outputs on the evaluation texts, where the data can tell; of the embeddings of
    a model that was made smaller also how near they are to those before."""
    assert context.data and context.task
    examples = context.data.eval
    if context.task.kind == "text-classification":
        return classification_metrics(context.task, truth_matrix(context.task, examples), outputs)
    scores = [e.score for e in examples if e.score is not None and e.pair is not None]
    n = len(examples)
    found: dict[str, float] = {}
    if len(scores) == n and len(outputs) == 2 * n and n >= 2:
        found["spearman"] = spearman(np.array(scores), cosine(outputs[:n], outputs[n:]))
    if context.original is not None:
        found[ORIGINAL_COSINE] = float(cosine(context.original, outputs).mean())
    return found
