"""finetune: a decoder, LoRA or full, on the assistant's tokens; the loss is averaged over them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from edgelm.compiler.chat.packing import IGNORED, can_pack, collate, packed_rows, single_rows
from edgelm.compiler.chat.samples import Sample, Samples, render_all
from edgelm.compiler.context import Context
from edgelm.compiler.hf import load_model, load_tokenizer
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.training import Training, add_lora, make_trainer, method, settled
from edgelm.runtime.errors import DataError, ModelError

LOSS = "eval_token_loss"


class ChatFinetune(Training):
    """Also keeps the loss on the evaluation rows before and after."""

    def deciding(self, context: Context) -> dict[str, Any]:
        assert context.chat is not None
        return {"data": context.chat.digest()}

    def set_up(self, context: Context, checkpoints: Path) -> tuple[Any, Any, dict[str, Any]]:
        assert context.source and context.chat and context.task and context.text
        recipe, limit = context.recipe, context.text.max_tokens
        tokenizer = load_tokenizer(context.source.folder, padded=False)
        train = render_all(context.chat.train, tokenizer, limit)
        held_out = render_all(context.chat.eval, tokenizer, limit)
        model = load_model(context.source.folder, context.task, new_head=False)
        check_samples(train, model, "training", limit)
        check_samples(held_out, model, "evaluation", limit)
        notes = [*train.notes("training", limit), *held_out.notes("evaluation", limit)]
        is_packed = recipe.train.packing
        if is_packed and not can_pack(model, train.samples):
            is_packed = False
            notes.append("packing is off: this model does not tell packed samples apart")
        if method(recipe) == "lora":
            model = add_adapters(model, recipe)

        def rows(samples: tuple[Sample, ...]) -> list[dict[str, list[int]]]:
            return packed_rows(samples, limit) if is_packed else single_rows(samples)

        arguments = {
            "per_device_eval_batch_size": settled(recipe).batch_size,
            "train_sampling_strategy": "random" if is_packed else "group_by_length",
            "greater_is_better": False,
        }
        training_rows = rows(train.samples)
        trainer = make_trainer(
            context,
            checkpoints,
            LOSS,
            arguments,
            model=model,
            train_dataset=training_rows,
            eval_dataset=rows(held_out.samples),
            data_collator=partial(collate, pad_id=context.text.pad_id),
            preprocess_logits_for_metrics=_token_losses,
            compute_metrics=_metrics,
        )
        said = {
            "eval_loss_before": trainer.evaluate()[LOSS],
            "rows": len(training_rows),
            "is_packed": is_packed,
            "n_tokens": train.n_tokens,
            "n_targets": train.n_targets,
            "n_truncated": train.n_truncated,
            "n_dropped": train.n_dropped,
            "notes": notes,
        }
        return model, trainer, said

    def finish(self, trainer: Any) -> dict[str, Any]:
        return {"eval_loss_after": trainer.evaluate()[LOSS]}


def check_samples(samples: Samples, model: Any, what: str, max_tokens: int) -> None:
    """Raises DataError where no sample is left, ModelError for tokens that the model lacks."""
    if not samples.samples:
        raise DataError(
            f"no {what} row has an answer within {max_tokens} tokens",
            hint="raise --max-tokens, or shorten what stands before the answers",
        )
    highest = max(max(sample.ids) for sample in samples.samples)
    n_vocab = model.get_input_embeddings().num_embeddings
    if highest >= n_vocab:
        raise ModelError(
            f"the tokenizer gives the token {highest}, but the model has {n_vocab} tokens",
            hint="is the tokenizer that of this model?",
        )


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """LoRA adapters on the linear layers of the decoder's blocks."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (Linear, Conv1D)) and module is not head
    ]
    return add_lora(model, recipe, linear, [])


def _token_losses(logits: Any, labels: Any) -> Any:
    """(B, 2): the summed loss of a row's targets, and how many there are."""
    import torch

    logits = logits[0] if isinstance(logits, tuple) else logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:],
        ignore_index=IGNORED, reduction="none",
    )  # fmt: skip
    counts = (labels[:, 1:] != IGNORED).sum(dim=1)
    return torch.stack([losses.sum(dim=1), counts.to(losses.dtype)], dim=1)


def _metrics(prediction: Any) -> dict[str, float]:
    total, count = prediction.predictions.astype("float64").sum(axis=0)
    return {LOSS.removeprefix("eval_"): float(total / count)}
