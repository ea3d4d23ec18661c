"""Classifiers and embedders: texts in, one prediction each out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, overload

from edgelm.runtime.background import Background
from edgelm.runtime.bundle import TOKENIZER_DIR, Bundle
from edgelm.runtime.engine import EngineOptions, Session
from edgelm.runtime.errors import EdgelmError, InputError, UsageError
from edgelm.runtime.manifest import Variant
from edgelm.runtime.model import Model
from edgelm.runtime.predictions import Prediction, answers
from edgelm.runtime.runner import Outputs, Runner
from edgelm.runtime.tokenizer import Text, Tokenizer


class TextModel(Model):
    """A loaded classifier or embedder. `predict` may be called from many threads."""

    def __init__(self, bundle: Bundle, variant: Variant, options: EngineOptions) -> None:
        from edgelm.targets import get_target

        super().__init__(bundle, variant)

        def open_(folder: Path) -> Session:
            return get_target(variant.target).open(folder, variant, self.task, options)

        opening = Background(bundle.open_variant, variant, open_)
        try:
            bundle.check_tokenizer()
            tokenizer = Tokenizer(bundle.folder / TOKENIZER_DIR, self.manifest.text)
        except BaseException:
            with contextlib.suppress(EdgelmError):
                opening.result().close()
            raise
        session = opening.result()
        self._runner: Runner | None = Runner(tokenizer, session)
        self.device = session.device

    @overload  # a str is a Sequence[str] too, and the first overload takes it
    def predict(  # pyright: ignore[reportOverlappingOverload]
        self, texts: Text, *, all_scores: bool = ..., on_long: Literal["truncate", "error"] = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        texts: Sequence[Text],
        *,
        all_scores: bool = ...,
        on_long: Literal["truncate", "error"] = ...,
    ) -> list[Prediction]: ...

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] the base takes anything
        self,
        texts: Text | Sequence[Text],
        *,
        all_scores: bool = False,
        on_long: Literal["truncate", "error"] = "truncate",
    ) -> Prediction | list[Prediction]:
        """Answer a text, or a list of texts in its order. A pair of texts is a tuple of two.

        all_scores: give the probability of every label. on_long: a text over the bundle's
        max_tokens is truncated and its answer marked `truncated`, or is an InputError.
        """
        if on_long not in ("truncate", "error"):
            raise UsageError(f"on_long: {on_long!r} is none of truncate, error")
        # anything else that is no sequence (None, a number) is one bad text, refused below
        single = isinstance(texts, (str, bytes, tuple, dict, set)) or not hasattr(texts, "__len__")
        batch = cast("list[Text]", [texts] if single else list(texts))
        if not batch:
            return []
        outputs = self.outputs(batch)
        if on_long == "error" and any(outputs.truncated):
            where = outputs.truncated.index(True)
            raise InputError(
                f"text {where} is longer than {self.manifest.text.max_tokens} tokens",
                hint='shorten it, or use on_long="truncate"',
            )
        result = answers(self.task, outputs.values, outputs.truncated, all_scores=all_scores)
        return result[0] if single else result

    def outputs(self, texts: Sequence[Text]) -> Outputs:
        """The engine's raw outputs: logits, or vectors before normalization."""
        if self._runner is None:
            raise UsageError("the model is closed")
        _check_texts(texts, self.task.pair)
        return self._runner.run(texts)

    @property
    def runner(self) -> Runner:
        """Tokenizer and session, for those who measure."""
        if self._runner is None:
            raise UsageError("the model is closed")
        return self._runner

    def close(self) -> None:
        """Free the engine; calling it twice is harmless."""
        if self._runner is not None:
            self._runner.session.close()
            self._runner = None
        self._bundle = None


def _check_texts(texts: Sequence[object], pair: bool) -> None:
    for i, text in enumerate(texts):
        if pair:
            ok = isinstance(text, tuple) and [type(t) for t in text] == [str, str]
            rule = "a pair of texts is needed, as a tuple of two"
        else:
            ok, rule = isinstance(text, str), "a text is needed"
        if not ok:
            raise InputError(f"text {i}: {type(text).__name__} {str(text)[:60]!r}: {rule}")
        parts = text if isinstance(text, tuple) else (text,)
        for part in parts:  # type: ignore[reportUnknownVariableType]
            try:
                part.encode("utf-8")  # type: ignore[reportUnknownMemberType]
            except UnicodeEncodeError as err:
                raise InputError(f"text {i}: holds a lone surrogate, which is no text") from err
