"""reference: what the merged Hugging Face model says of the evaluation data; the oracle.

Also writes the bundle's tokenizer and chat template, after parity.py has proved them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.asking import (
    Advance,
    greedy_answers,
    ignore,
    score,
)
from edgelm.compiler.chat.oracle import (
    Answers,
    Scored,
    choose_scored,
    load_oracle,
    write_json,
)
from edgelm.compiler.chat.parity import check_prompt_ids, check_template, texts_of
from edgelm.compiler.chat.prompts import choose_prompts, golden
from edgelm.compiler.chat.samples import render_all
from edgelm.compiler.chat.template import on_a_fixed_day
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_model, load_tokenizer, torch_threads, versions
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.reference import write_tokenizer
from edgelm.runtime.errors import DataError
from edgelm.runtime.generate.template import ChatTemplate
from edgelm.runtime.manifest import TEMPLATE_FILE
from edgelm.runtime.metrics import perplexity
from edgelm.runtime.schema import encode
from edgelm.runtime.tokenizer import Tokenizer

ANSWER_TOKENS = 48  # of each greedy answer


class ChatReference(Pass):
    """Sets context.oracle, .reference_metrics, .tokenizer_dir and .golden."""

    name = "reference"

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.model_dir and context.chat and context.source and context.task
        verify = context.recipe.verify
        return {
            "model": context.model_key,
            "base": context.source.digest if _was_tuned(context) else None,
            "data": context.chat.digest(),
            "task": encode(context.task),
            "text": encode(context.text),
            "eval_tokens": verify.eval_tokens,
            "eval_answers": verify.eval_answers,
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.chat and context.task and context.text
        assert context.source
        task, limits, rows = context.task, context.text, context.chat.eval
        tokenizer = load_tokenizer(context.model_dir, padded=False)
        rendered = render_all(rows, tokenizer, limits.max_tokens)
        samples, notes = rendered.samples, rendered.notes("evaluation", limits.max_tokens)
        (folder / "tokenizer").mkdir()
        write_tokenizer(tokenizer, folder / "tokenizer")
        if task.chat:
            template = tokenizer.get_chat_template()
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
            fixed = ChatTemplate(on_a_fixed_day(template), task.special_tokens)
            check_template(tokenizer, fixed, rows)
        runtime = Tokenizer(folder / "tokenizer", limits, truncates=False)
        check_prompt_ids(tokenizer, runtime, texts_of(tokenizer, rows))
        scored = choose_scored(samples, context.recipe.verify.eval_tokens)
        if not scored:
            raise DataError("the evaluation data holds no token to predict")
        write_json(folder / "scored.json", scored)
        write_json(folder / "golden.json", golden(samples, tokenizer, task))
        n_answer = min(ANSWER_TOKENS, limits.max_tokens // 2)
        prompts = choose_prompts(
            rows,
            samples,
            tokenizer,
            task,
            n=context.recipe.verify.eval_answers,
            max_tokens=limits.max_tokens - n_answer,
        )
        advance = context.progress.advance
        with torch_threads(context.recipe.threads):
            model = load_model(context.model_dir, task, new_head=False)
            facts = {"n_parameters": model.num_parameters(), "notes": notes}
            write_json(folder / "facts.json", facts)
            n, V = sum(s.n_kept for s in scored), model.config.get_text_config().vocab_size
            context.progress.note(
                f"the distributions of {n} tokens take {2e-6 * n * V:.0f} MB of the cache"
            )
            write_scores(folder, model, scored, advance)
            ids = greedy_answers(model, [p.ids for p in prompts], n_answer, task.end_ids, advance)
            texts = tuple(tokenizer.decode(row, skip_special_tokens=True) for row in ids)
            answers = Answers(n_answer, tuple(prompts), tuple(map(tuple, ids)), texts)
            write_json(folder / "answers.json", answers)
            del model
            if _was_tuned(context):
                base = load_model(context.source.folder, task, new_head=False)
                np.save(folder / "base_losses.npy", score(base, scored, advance=advance))

    def load(self, context: Context, folder: Path) -> None:
        context.golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        context.tokenizer_dir = folder / "tokenizer"
        context.oracle = oracle = load_oracle(folder)
        metrics = {"loss": oracle.loss, "perplexity": perplexity(oracle.losses)}
        if oracle.base_loss is not None:
            metrics["base_loss"] = oracle.base_loss
            after = context.original_metrics.get("loss", oracle.loss)  # before it was made smaller
            if oracle.base_loss <= after:
                context.note(
                    f"fine-tuning did not lower the evaluation loss: {oracle.base_loss:.4f} "
                    f"before, {after:.4f} after"
                )
        context.reference_metrics = metrics
        for note in oracle.notes:
            if note not in context.notes:  # the training says the same
                context.note(note)
        n, wanted = len(oracle.answers.prompts), context.recipe.verify.eval_answers
        if n < wanted:
            context.note(f"greedy answers are compared on {n} prompts: the data gives no {wanted}")


def _was_tuned(context: Context) -> bool:
    """Whether this compile changed the model that came in."""
    return context.training.get("method", "none") != "none"


def write_scores(
    folder: Path, model: Any, scored: Sequence[Scored], advance: Advance = ignore
) -> None:
    """The losses of all targets, and the distributions that are to be kept."""
    n, V = sum(s.n_kept for s in scored), model.config.get_text_config().vocab_size
    kept = np.lib.format.open_memmap(
        folder / "log_probs.npy", mode="w+", dtype=np.float16, shape=(n, V)
    )
    top = np.empty(n, np.int32)
    at = 0

    def keep(rows: NDArray[np.float32]) -> None:
        nonlocal at
        kept[at : at + len(rows)] = rows
        top[at : at + len(rows)] = rows.argmax(axis=1)
        at += len(rows)

    losses = score(model, scored, keep, advance)
    assert at == n, (at, n)
    kept.flush()
    np.save(folder / "losses.npy", losses)
    np.save(folder / "top.npy", top)
