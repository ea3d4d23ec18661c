"""One answer while it grows: which token comes next, what text it gives, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from edgelm.runtime.generate.options import GenerateOptions
from edgelm.runtime.generate.sampler import Sampler, TokenLogprob, logprobs
from edgelm.runtime.generate.speculate import Guesser
from edgelm.runtime.metrics import Floats

if TYPE_CHECKING:
    from edgelm.runtime.generate.constraints import Constraint
    from edgelm.runtime.generate.detokenize import Detokenizer
    from edgelm.runtime.generate.stops import StopStrings

FinishReason = Literal["stop", "length"]


class Step(NamedTuple):
    """What one token brought."""

    text: str
    token_id: int
    logprobs: tuple[TokenLogprob, ...] | None = None


class Answer:
    """Prompt and answer as token ids, and everything that decides the next one."""

    def __init__(
        self,
        prompt: Sequence[int],
        options: GenerateOptions,
        *,
        end_ids: frozenset[int],
        max_tokens: int,
        text: Detokenizer | None = None,
        stops: StopStrings | None = None,
        constraint: Constraint | None = None,
        guesser: Guesser | None = None,
    ) -> None:
        self.ids = list(prompt)
        self.n_prompt = len(self.ids)
        self.n_reused = 0  # prompt tokens that the engine still held
        self.finish_reason: FinishReason | None = None
        self.stop: str | None = None  # the stop string that ended it
        self._options = options
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._text, self._stops, self._constraint = text, stops, constraint
        self._sampler = Sampler(options, self.ids)
        self._guesser = guesser

    @property
    def n_answer(self) -> int:
        """Tokens answered so far, the end token included."""
        return len(self.ids) - self.n_prompt

    def guess(self) -> list[int]:
        """Tokens that are likely, or certain, to come next."""
        if self._constraint is None and self._guesser is None:
            return []
        found: list[int] = []
        if self._constraint is not None:
            found = self._constraint.forced()
        if not found and self._guesser is not None:
            found = self._guesser.guess(self.ids)
        return found[: max(0, self._max_tokens - self.n_answer - 1)]

    def take(self, rows: Floats, guess: Sequence[int] = ()) -> list[Step]:
        """Pick a token from each row of logits (1 + guesses, V), as long as the guesses hold."""
        steps = [self._take_one(rows[0])]
        for guessed, row in zip(guess, rows[1:], strict=True):
            if self.finish_reason is not None or steps[-1].token_id != guessed:
                break
            steps.append(self._take_one(row))
        if self._guesser is not None:
            self._guesser.learn(len(guess), len(steps) - 1)
        return steps

    def _take_one(self, row: Floats) -> Step:
        token = self._sampler.pick(row, self._constraint)
        wanted = self._options.logprobs
        said = None if wanted is None else logprobs(row, token, wanted)
        self.ids.append(token)
        if token in self._end_ids:
            return Step(self._end("stop"), token, said)
        if self._constraint is not None:
            self._constraint.accept(token)
        text = "" if self._text is None else self._text.push(token)
        if self._stops is not None and text:
            text, self.stop = self._stops.push(text)
            if self.stop is not None:
                self.finish_reason = "stop"
                return Step(text, token, said)
        if self._constraint is not None and self._constraint.is_complete:
            text += self._end("stop")
        elif self.n_answer >= self._max_tokens:
            text += self._end("length")
        return Step(text, token, said)

    def _end(self, reason: FinishReason) -> str:
        """What was held back; a stop string may come to light in it."""
        self.finish_reason = reason
        left = "" if self._text is None else self._text.flush()
        if self._stops is None:
            return left
        sure, _ = self._stops.push(left)
        rest, self.stop = self._stops.flush()
        if self.stop is not None:
            self.finish_reason = "stop"
        return sure + rest
