"""`edgelm.load(path).predict(text)`: one call, the same on every target."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, cast, overload

from edgelm.runtime.bundle import TOKENIZER_DIR, Bundle
from edgelm.runtime.engine import DEVICES, Device, EngineOptions
from edgelm.runtime.errors import InputError, UsageError
from edgelm.runtime.floors import check_engine
from edgelm.runtime.manifest import Manifest, Task, Variant
from edgelm.runtime.predictions import Prediction, answers
from edgelm.runtime.runner import Outputs, Runner
from edgelm.runtime.select import select_variant
from edgelm.runtime.tokenizer import Text, Tokenizer


def load(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
) -> Model:
    """Open a bundle.

    variant: a variant's name (`onnx-int8`) or a target's (`gguf`); the fastest that runs here when
    left out. device: auto, cpu or cuda. threads: of the engine; all cores the process may use when
    left out.

    Raises BundleNotFound, BundleVersionError, TamperedError, BundleError, UnknownVariant,
    MissingExtra, TargetUnavailable, UsageError.
    """
    if device not in DEVICES:
        raise UsageError(f"device: {device!r} is none of {', '.join(DEVICES)}")
    options = EngineOptions(device, threads)
    bundle = Bundle(Path(path))
    chosen = select_variant(bundle.manifest, variant, device, unavailable)
    bundle.check_for(chosen)
    return Model(bundle, chosen, options)


class Model:
    """A loaded bundle. `predict` may be called from many threads; use `with`, or `close()`."""

    def __init__(self, bundle: Bundle, variant: Variant, options: EngineOptions) -> None:
        from edgelm.targets import get_target

        self.manifest: Manifest = bundle.manifest
        self.variant = variant
        check_engine(variant)
        tokenizer = Tokenizer(bundle.root / TOKENIZER_DIR, self.manifest.text)
        session = get_target(variant.target).open(bundle.root, variant, self.task, options)
        self._runner: Runner | None = Runner(tokenizer, session)
        self.device = session.device

    @property
    def task(self) -> Task:
        """What the model answers."""
        return self.manifest.task

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier; empty for embeddings."""
        return self.task.labels

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

    def predict(
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

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


def unavailable(target: str, device: Device) -> str | None:
    """Why a target cannot run here, which may be one this version does not know; else None."""
    from edgelm.targets import TARGETS, get_target

    if target not in TARGETS:
        return "not known to this version of edgelm"
    found = get_target(target)
    reason = found.available()
    if reason is None and device not in ("auto", *found.capabilities().devices):
        return f"no {device} device"
    return reason
