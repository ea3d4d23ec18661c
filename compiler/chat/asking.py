"""The Hugging Face decoder itself, asked on the CPU: distributions, losses, greedy answers.

B sequences, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.oracle import Scored

BATCH = 16  # answers side by side
BLOCK = 64  # rows of log-probabilities in memory at once

Advance = Callable[[int, int], None]
Rows = NDArray[np.float32]


def ignore(done: int, total: int) -> None:
    """No progress is shown."""


def target_log_probs(model: Any, scored: Scored) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Log-probabilities (n, V) that predict the targets, in blocks: which targets, and theirs."""
    import torch

    after = torch.tensor([t - 1 for t in scored.targets])
    ids = torch.tensor([scored.ids[: int(after[-1]) + 1]])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=after).logits[0]
        for start in range(0, len(logits), BLOCK):
            block = logits[start : start + BLOCK].float()
            yield slice(start, start + len(block)), torch.log_softmax(block, dim=-1).numpy()


def score(
    model: Any,
    texts: Sequence[Scored],
    keep: Callable[[Rows], None] | None = None,
    advance: Advance = ignore,
) -> NDArray[np.float32]:
    """The loss of every target (N,), in the order of the texts; `keep` gets those rows of
    log-probabilities that are to be kept."""
    losses: list[NDArray[np.float32]] = []
    for i, scored in enumerate(texts):
        targets, kept = np.array([scored.ids[t] for t in scored.targets]), np.array(scored.kept)
        for which, rows in target_log_probs(model, scored):
            losses.append(-rows[np.arange(len(rows)), targets[which]])
            if keep is not None and kept[which].any():
                keep(rows[kept[which]])
        advance(i + 1, len(texts))
    return np.concatenate(losses)


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
    advance: Advance = ignore,
) -> list[list[int]]:
    """The likeliest answer to each prompt, end token left out; prompts of like length side by side.

    It is what `generate(do_sample=False)` gives where the generation config changes no logits."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        found = _batch(model, [prompts[i] for i in part], max_tokens, frozenset(end_ids))
        for i, ids in zip(part, found, strict=True):
            answers[i] = ids
        advance(start + len(part), len(order))
    return answers


def _batch(
    model: Any, prompts: list[Sequence[int]], max_tokens: int, end_ids: frozenset[int]
) -> list[list[int]]:
    import torch

    B, T = len(prompts), max(map(len, prompts))
    ids = torch.zeros((B, T), dtype=torch.long)
    mask = torch.zeros((B, T), dtype=torch.long)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all go on at T
        ids[row, T - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, T - len(prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * B
    cache = None
    with torch.inference_mode():
        for _ in range(max_tokens):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            tokens = out.logits[:, -1].argmax(dim=-1)
            for row, token in enumerate(tokens.tolist()):
                ended[row] = ended[row] or token in end_ids
                if not ended[row]:
                    answers[row].append(token)
            if all(ended):
                break
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones((B, 1), dtype=torch.long)], dim=1)
    return answers
