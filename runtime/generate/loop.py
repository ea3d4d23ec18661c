"""Engine steps: one answer at a time with its prefix kept, or many side by side."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.runtime.engine import DecoderSession
from edgelm.runtime.errors import EdgelmError
from edgelm.runtime.generate.answer import Answer, Step
from edgelm.runtime.generate.held import Held
from edgelm.runtime.generate.options import GenerateOptions
from edgelm.runtime.generate.slots import Slots


def step(held: Held, answer: Answer, visible: list[int]) -> list[Step]:
    """The next token of `answer`, and those after it that were guessed right."""
    guess = answer.guess()[: held.context_tokens - len(visible)]
    if guess and held.n_kept(visible) < len(visible) - 1:
        guess = []  # beside a prompt they would not be rounded as tokens of an answer are
    rows = held.logits(visible, guess)
    return answer.take(rows, guess)


def run_side_by_side(session: DecoderSession, answers: Sequence[Answer]) -> list[list[Step]]:
    """All answers to their ends, as many at once as the session has slots.

    The slots are empty before and after. Raises InputError where prompt and answer do not fit."""
    slots = Slots(session)
    steps: dict[int, list[Step]] = {id(answer): [] for answer in answers}
    try:
        for answer in answers:
            slots.join(answer)
        while slots:
            for answer, outcome in slots.step():
                if isinstance(outcome, EdgelmError):
                    raise outcome
                steps[id(answer)] += outcome
    finally:
        slots.clear()
    return [steps[id(answer)] for answer in answers]


def greedy(
    session: DecoderSession,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
) -> list[list[int]]:
    """The likeliest answer to each prompt as token ids, up to and with an end token."""
    options = GenerateOptions(max_tokens=max_tokens)
    ends = frozenset(end_ids)
    answers = [Answer(p, options, end_ids=ends, max_tokens=max_tokens) for p in prompts]
    run_side_by_side(session, answers)
    return [a.ids[a.n_prompt :] for a in answers]
