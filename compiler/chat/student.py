"""teach and shrink for generation: the model so far is asked for the distribution of each token
that the assistant is to say, kept on disk; a smaller one learns from these and takes its place.

B rows, T tokens, N targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.compiler.chat.asking import score
from edgelm.compiler.chat.drawn import drawn_rows
from edgelm.compiler.chat.finetune import check_samples
from edgelm.compiler.chat.oracle import choose_scored
from edgelm.compiler.chat.packing import IGNORED, collate, n_predicted, single_rows
from edgelm.compiler.chat.samples import render_all
from edgelm.compiler.context import Context
from edgelm.compiler.distil.probes import token_batches
from edgelm.compiler.distil.teacher import ROW, Values, record, token_arrays, token_values
from edgelm.compiler.distil.trainer import Collate, Loss
from edgelm.compiler.hf import load_model, load_tokenizer, torch_threads, versions
from edgelm.compiler.passes.shrink import Shrink, load_student
from edgelm.compiler.passes.teach import ANSWERS, Teach, choose_layers, load_layers, measured
from edgelm.compiler.training import settled_distil
from edgelm.runtime.engine import BatchLimits
from edgelm.runtime.errors import ModelError
from edgelm.runtime.metrics import perplexity
from edgelm.runtime.runner import plan_batches
from edgelm.runtime.schema import encode

if TYPE_CHECKING:
    from edgelm.compiler.distil.pruning import Shape

BATCHES = BatchLimits(max_sequences=8, max_tokens=1024)  # whole logits are in memory at once


class ChatTeach(Teach):
    """Sets context.taught, .kept_layers and .original_metrics: loss and perplexity before."""

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.task and context.text and context.chat
        return {
            "model": context.model_key,
            "data": context.chat.digest(),
            "measured": measured(context.recipe),
            "temperature": settled_distil(context.recipe).temperature,
            "eval_tokens": context.recipe.verify.eval_tokens,
            "task": encode(context.task),
            "text": encode(context.text),
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        assert context.model_dir and context.task and context.text and context.chat
        temperature, limit = settled_distil(context.recipe).temperature, context.text.max_tokens
        tokenizer = load_tokenizer(context.model_dir, padded=False)
        model = load_model(context.model_dir, context.task, new_head=False)
        train = render_all(context.chat.train, tokenizer, limit)
        check_samples(train, model, "training", limit)
        rows = single_rows(train.samples)
        put = partial(collate, pad_id=context.text.pad_id)

        def answer(numbers: Sequence[int]) -> Values:
            import torch

            batch = put([rows[i] for i in numbers])
            with torch.inference_mode():
                found, _ = target_logits(model, batch)
                return token_values(found, temperature)

        lengths = np.array([len(row["input_ids"]) for row in rows], np.int32)
        held_out = render_all(context.chat.eval, tokenizer, limit)
        scored = choose_scored(held_out.samples, context.recipe.verify.eval_tokens)
        with torch_threads(context.recipe.threads):
            choose_layers(
                context, folder, model, lambda: token_batches(rows, put, context.recipe.seed)
            )
            record(
                folder / ANSWERS,
                token_arrays(int(model.get_input_embeddings().num_embeddings)),
                [n_predicted(row) for row in rows],
                [batch.tolist() for batch in plan_batches(lengths, BATCHES)],
                answer,
                context.progress.advance,
            )
            np.save(folder / "losses.npy", score(model, scored))

    def load(self, context: Context, folder: Path) -> None:
        load_layers(context, folder)
        context.taught = folder / ANSWERS
        losses = np.load(folder / "losses.npy")
        loss = float(losses.mean(dtype=np.float64))
        context.original_metrics = {"loss": loss, "perplexity": perplexity(losses)}


class ChatShrink(Shrink):
    """The student learns on the assistant's tokens."""

    def tokenizer(self, context: Context) -> Any:
        assert context.model_dir is not None
        return load_tokenizer(context.model_dir, padded=False)

    def rows(self, context: Context, tokenizer: Any) -> list[dict[str, Any]]:
        assert context.chat and context.text
        samples = render_all(context.chat.train, tokenizer, context.text.max_tokens).samples
        return [{**row, ROW: i} for i, row in enumerate(single_rows(samples))]

    def collator(self, context: Context, tokenizer: Any) -> Collate:
        assert context.text is not None
        return partial(collate, pad_id=context.text.pad_id)

    def loss(self, context: Context) -> Loss:
        import torch
        from torch.nn.functional import cross_entropy

        from edgelm.compiler.distil.losses import token_divergence

        distil = settled_distil(context.recipe)
        own = self._loss_of_samples(context) if distil.samples else None

        def loss(model: Any, inputs: dict[str, Any], said: dict[str, Any]) -> tuple[Any, Any]:
            if own is not None and float(torch.rand(())) < distil.samples:
                return own(model, inputs)
            found, outputs = target_logits(model, inputs)
            total = token_divergence(
                found,
                said["log_probs"],
                said.get("ids"),
                temperature=distil.temperature,
                direction=distil.direction,
            )
            if distil.label_weight:
                labels = inputs["labels"][:, 1:]
                given = cross_entropy(found.float(), labels[labels != IGNORED])
                total = total + distil.label_weight * given
            return total, outputs

        return loss

    def _loss_of_samples(self, context: Context) -> Callable[[Any, dict[str, Any]], Any]:
        """(student, batch) -> the loss on answers that the student draws, and its outputs."""
        import torch

        from edgelm.compiler.distil.losses import token_divergence

        assert context.model_dir and context.task and context.text
        distil, end_ids, limits = settled_distil(context.recipe), context.task.end_ids, context.text
        teacher = load_model(context.model_dir, context.task, new_head=False)

        def loss(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
            rows = drawn_rows(
                model,
                inputs,
                end_ids=end_ids,
                pad_id=limits.pad_id,
                max_tokens=limits.max_tokens,
            )
            device = inputs["input_ids"].device
            batch = {k: v.to(device) for k, v in collate(rows, limits.pad_id).items()}
            with torch.no_grad():
                wanted, _ = target_logits(teacher.to(device), batch)
            found, outputs = target_logits(model, batch)
            value = token_divergence(
                found,
                torch.log_softmax(wanted.float() / distil.temperature, -1),
                temperature=distil.temperature,
                direction=distil.direction,
            )
            return value, outputs

        return loss

    def cut(
        self, context: Context, model: Any, tokenizer: Any, rows: list[Any], shape: Shape
    ) -> Any:
        from edgelm.compiler.distil import pruning

        if pruning.shape_of(model.config) == shape:
            return model
        put = self.collator(context, tokenizer)
        batches = token_batches(rows, put, context.recipe.seed)
        return pruning.keep_best(model, pruning.measure(model, batches, summed_loss), shape)

    def other(self, context: Context, tokenizer: Any, teacher: Any) -> Any:
        model = load_student(context, tokenizer, padded=False)
        n, wanted = (m.get_input_embeddings().num_embeddings for m in (model, teacher))
        if n != wanted:
            raise ModelError(
                f"distil.student: it has {n} tokens, the teacher {wanted}",
                hint="take a student of the teacher's family, or prune the model itself",
            )
        return model


def target_logits(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Logits (N, V) that predict the targets of a batch, and the model's outputs."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    outputs = model(**given, use_cache=False)
    return outputs.logits[:, :-1][batch["labels"][:, 1:] != IGNORED], outputs


def summed_loss(outputs: Any, batch: dict[str, Any]) -> Any:
    """Cross-entropy of the targets."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(
        outputs.logits[:, :-1].float().flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
