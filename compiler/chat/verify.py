"""verify: run a generation variant on its real engine and compare it with the reference.

The comparison is kept whether it passes or not; limits are applied each time, so that a changed
limit does not run the engine again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.compiler.chat.asking import Advance
from edgelm.compiler.chat.oracle import Answers, Oracle, write_json
from edgelm.compiler.context import Context, Worst
from edgelm.compiler.limits import failures, limits_of
from edgelm.compiler.packing import manifest_variant
from edgelm.compiler.passes.verify import DEVICE, N_WORST, Verify, original_failures
from edgelm.runtime.engine import DecoderOptions, DecoderSession
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.generate.loop import greedy
from edgelm.runtime.generate.score import golden_rows, logits_after, prompt_ids
from edgelm.runtime.manifest import Parity
from edgelm.runtime.metrics import first_difference, log_softmax, perplexity, token_divergence
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.targets import get_target

SIDE_BY_SIDE = 4  # answers


@dataclass(frozen=True)
class Compared:
    """What was seen of a variant."""

    losses: NDArray[np.float32]  # (N,) of all targets, as Oracle.losses
    divergences: NDArray[np.float64]  # (n,) of the kept distributions, in nats
    same_top: NDArray[np.bool_]  # (n,)
    answers: tuple[tuple[int, ...], ...]  # as Answers.ids


class ChatVerify(Verify):
    """Fills golden, parity, metrics, worst and failures of one variant."""

    def run(self, context: Context, folder: Path) -> None:
        assert context.tokenizer_dir and context.text and context.task and context.oracle
        state, task = context.variants[self.variant], context.task
        session = get_target(state.target).open_decoder(
            state.folder,
            manifest_variant(state),
            context.text,
            DecoderOptions(DEVICE, context.recipe.threads),
        )
        try:
            found = compare(session, context.oracle, task.end_ids, context.progress.advance)
            texts = [str(text) for text in context.golden]
            rows = prompt_ids(context.tokenizer_dir, texts, task, context.text)
            golden = golden_rows(session, [ids[: session.context_tokens] for ids in rows])
        finally:
            session.close()
        np.save(folder / "losses.npy", found.losses)
        np.save(folder / "divergences.npy", found.divergences)
        np.save(folder / "same_top.npy", found.same_top)
        np.save(folder / "golden.npy", golden)
        backend = Tokenizer(context.tokenizer_dir, context.text).backend
        said = [backend.decode(ids, skip_special_tokens=True) for ids in found.answers]
        write_json(folder / "answers.json", {"ids": found.answers, "texts": said})

    def load(self, context: Context, folder: Path) -> None:
        assert context.oracle is not None and context.task is not None
        oracle, state = context.oracle, context.variants[self.variant]
        answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        found = Compared(
            np.load(folder / "losses.npy"),
            np.load(folder / "divergences.npy"),
            np.load(folder / "same_top.npy"),
            tuple(tuple(ids) for ids in answers["ids"]),
        )
        state.golden = np.load(folder / "golden.npy")
        state.parity = parity(oracle, found)
        loss = float(found.losses.mean(dtype=np.float64))
        state.metrics = {"loss": loss, "perplexity": perplexity(found.losses)}
        state.worst = worst(oracle.answers, found.answers, answers["texts"])
        limits = limits_of(context.recipe, state)
        state.failures = failures(
            context.task, limits, state.parity, state.metrics, context.reference_metrics
        )
        if context.original_metrics:
            state.failures += original_failures(context, state.metrics)


def compare(
    session: DecoderSession, oracle: Oracle, end_ids: Sequence[int], advance: Advance
) -> Compared:
    """Run the oracle's texts and prompts. Raises VerificationError for another vocabulary."""
    V = oracle.log_probs.shape[1]
    if session.n_vocab != V:
        raise VerificationError(
            f"the engine gives {session.n_vocab} logits, the model {V}",
            hint="leave this target out; `edgelm targets` lists the others",
        )
    losses: list[NDArray[np.float64]] = []
    divergences: list[NDArray[np.float64]] = []
    same_top: list[NDArray[np.bool_]] = []
    at = 0
    for i, scored in enumerate(oracle.scored):
        targets, kept = np.array([scored.ids[t] for t in scored.targets]), np.array(scored.kept)
        for which, logits in logits_after(session, scored.ids, [t - 1 for t in scored.targets]):
            losses.append(-log_softmax(logits)[np.arange(len(logits)), targets[which]])
            rows = logits[kept[which]]
            expected = slice(at, at + len(rows))
            divergences.append(token_divergence(oracle.log_probs[expected], rows))
            same_top.append(rows.argmax(axis=1) == oracle.top[expected])
            at += len(rows)
        advance(i + 1, len(oracle.scored))
    answers = _answers(session, oracle.answers, end_ids)
    return Compared(
        np.concatenate(losses).astype(np.float32),
        np.concatenate(divergences),
        np.concatenate(same_top),
        answers,
    )


def _answers(
    session: DecoderSession, asked: Answers, end_ids: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Greedy answers, end tokens left out."""
    longest = max(len(p.ids) for p in asked.prompts) + asked.max_tokens
    side = session.fork(min(SIDE_BY_SIDE, len(asked.prompts)), longest)
    try:
        found = greedy(side, [p.ids for p in asked.prompts], asked.max_tokens, end_ids)
    finally:
        side.close()
    ends = set(end_ids)
    return tuple(tuple(ids[:-1] if ids and ids[-1] in ends else ids) for ids in found)


def parity(oracle: Oracle, found: Compared) -> Parity:
    """The numbers of the manifest."""
    parts = [first_difference(a, b) for a, b in zip(oracle.answers.ids, found.answers, strict=True)]
    parted = [at for at in parts if at is not None]
    loss = float(found.losses.mean(dtype=np.float64))
    gain = 0.0 if oracle.base_loss is None else oracle.base_loss - oracle.loss
    return Parity(
        n=len(found.divergences),
        max_abs_diff=float(np.abs(found.losses - oracle.losses).max()),
        agreement=float(found.same_top.mean()),
        kl_divergence=float(found.divergences.mean()),
        kl_p999=float(np.quantile(found.divergences, 0.999)),
        perplexity_ratio=perplexity(found.losses - oracle.losses),
        same_answers=1 - len(parted) / len(parts),
        first_divergence=float(np.median(parted)) if parted else None,
        gain_kept=None if gain <= 0 else 1 - (loss - oracle.loss) / gain,
    )


def worst(
    asked: Answers, answers: Sequence[Sequence[int]], texts: Sequence[str]
) -> tuple[Worst, ...]:
    """The answers that part first, with the token at which they do."""
    parts = [first_difference(a, b) for a, b in zip(asked.ids, answers, strict=True)]
    order = sorted((at, i) for i, at in enumerate(parts) if at is not None)
    return tuple(
        Worst(asked.prompts[i].text, asked.texts[i], texts[i], at, "apart at token")
        for at, i in order[:N_WORST]
    )
