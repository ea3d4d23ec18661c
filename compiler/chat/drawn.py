"""Answers that a student draws itself, for its teacher to judge: what it learns on is then what it
will say (Agarwal et al. 2023, arXiv:2306.13649).

B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

from edgelm.compiler.chat.packing import IGNORED, Row


def drawn_rows(
    model: Any, batch: dict[str, Any], *, end_ids: tuple[int, ...], pad_id: int, max_tokens: int
) -> list[Row]:
    """The rows of a batch (B, T), padded on the right, with their last answers replaced by what
    the model says at temperature 1: up to an end token, or the length of the batch's longest.

    Draws from torch's own random numbers, which Trainer's checkpoints keep."""
    import torch
    from transformers import GenerationConfig

    prompts, n_answers = _prompts(batch)
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # on the left
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    given, was_training = model.generation_config, model.training
    model.generation_config = GenerationConfig(  # or the model's own would be mixed in
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=min(max(n_answers), max_tokens - longest),
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    model.eval()
    try:
        with torch.no_grad():
            device = batch["input_ids"].device
            found = model.generate(ids.to(device), attention_mask=mask.to(device))
    finally:
        model.generation_config = given
        model.train(was_training)
    answers = [_ended(row, end_ids) for row in found[:, longest:].tolist()]
    return [
        {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + answer}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _prompts(batch: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Of each row what stands before its last run of targets, and how long that is."""
    prompts: list[list[int]] = []
    n_answers: list[int] = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        stop = max(t for t, label in enumerate(labels) if label != IGNORED) + 1
        start = stop
        while start > 1 and labels[start - 1] != IGNORED:
            start -= 1
        prompts.append(ids[:start])
        n_answers.append(stop - start)
    return prompts, n_answers


def _ended(ids: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """Up to the first end token, which is part of an answer."""
    for t, token in enumerate(ids):
        if token in end_ids:
            return ids[: t + 1]
    return ids
