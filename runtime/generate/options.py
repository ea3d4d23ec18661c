"""What a caller may ask of a generation, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from edgelm.runtime.errors import UsageError
from edgelm.runtime.schema import nearest

MAX_TOKENS = 512  # of an answer, when the caller states none; fewer where the context ends
MAX_STOPS = 16
OnLong = Literal["error", "slide"]
Speculate = Literal["off", "lookup", "draft"]


def _option(default: Any, help: str) -> Any:
    """A field; the command line's flag of the same name shows its help."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class GenerateOptions:
    """The meaning is the same on every engine. Order: penalty, temperature, top_k, top_p, min_p,
    as Hugging Face's `generate` has it."""

    max_tokens: int | None = _option(
        None, f"Longest answer; {MAX_TOKENS}, or what the context leaves, when left out."
    )
    temperature: float = _option(0.0, "0 always takes the likeliest token.")
    top_p: float = _option(1.0, "Keep the likeliest tokens that have this much probability.")
    top_k: int = _option(0, "Keep so many of the likeliest tokens; 0 keeps all.")
    min_p: float = _option(0.0, "Keep tokens with this share of the likeliest one's probability.")
    repetition_penalty: float = _option(1.0, "Divides the logits of tokens that stood before.")
    seed: int | None = _option(None, "The same seed gives the same answer.")
    stop: tuple[str, ...] = _option((), "A text that ends the answer; may be repeated.")
    logprobs: int | None = _option(None, "Report log-probabilities, with so many alternatives.")
    on_long: OnLong = _option(
        "error", "Over the context: error, or slide, which forgets the oldest tokens."
    )
    speculate: Speculate = _option(
        "off", "Guess tokens: lookup finds them in the text so far, draft asks the draft model."
    )

    def __post_init__(self) -> None:
        def rule(ok: bool, name: str, says: str) -> None:
            if not ok:
                raise UsageError(f"{name}: {getattr(self, name)!r} {says}")

        rule(self.max_tokens is None or _is_int(self.max_tokens, 1), "max_tokens", "must be >= 1")
        rule(_is_number(self.temperature, 0, 100), "temperature", "must be 0 to 100")
        rule(_is_number(self.top_p, 0, 1) and self.top_p > 0, "top_p", "must be over 0, up to 1")
        rule(_is_int(self.top_k, 0), "top_k", "must be 0 (all) or more")
        rule(_is_number(self.min_p, 0, 1), "min_p", "must be 0 to 1")
        rule(
            _is_number(self.repetition_penalty, 0, 100) and self.repetition_penalty > 0,
            "repetition_penalty", "must be over 0, up to 100",
        )  # fmt: skip
        rule(self.seed is None or _is_int(self.seed, 0), "seed", "must be a whole number >= 0")
        rule(
            len(self.stop) <= MAX_STOPS and all(s and _is_text(s) for s in self.stop),
            "stop", f"must be at most {MAX_STOPS} strings, none of them empty",
        )  # fmt: skip
        rule(
            self.logprobs is None or (_is_int(self.logprobs, 0) and self.logprobs <= 100),
            "logprobs", "must be 0 to 100",
        )  # fmt: skip
        rule(self.on_long in ("error", "slide"), "on_long", "is none of error, slide")
        rule(
            self.speculate in ("off", "lookup", "draft"), "speculate",
            "is none of off, lookup, draft",
        )  # fmt: skip

    @staticmethod
    def of(**given: Any) -> GenerateOptions:
        """From keyword arguments; `stop` may be one string. Raises UsageError."""
        known = [f.name for f in fields(GenerateOptions)]
        for name in given:
            if name not in known:
                raise UsageError(
                    f"unknown option {name!r}{nearest(name, known)}",
                    hint=f"the options are {', '.join(known)}",
                )
        stop = given.pop("stop", ())
        if isinstance(stop, str) or stop is None:
            stop = (stop,) if stop else ()
        if not isinstance(stop, (list, tuple)):
            raise UsageError(f"stop: {stop!r} is neither a string nor a list of strings")
        return GenerateOptions(**given, stop=tuple(stop))


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, least: float, most: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str)
