"""`edgelm.load(path)`: from a bundle to a model that predicts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import DecoderOptions, Device, split_device
from edgelm.runtime.errors import UsageError
from edgelm.runtime.floors import check_engine
from edgelm.runtime.manifest import TOKENIZER_FILE, TaskKind, Variant
from edgelm.runtime.model import Model
from edgelm.runtime.select import best_on_gpu, select_variant
from edgelm.runtime.trust.policy import NO_TRUST, Trust

if TYPE_CHECKING:
    from edgelm.runtime.chat_model import ChatModel


def load(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    context_tokens: int | None = None,
    speculate: bool = False,
    draft: str | os.PathLike[str] | None = None,
    parallel: int = 1,
    trust: Trust = NO_TRUST,
) -> Model:
    """Open a bundle: a `TextModel` for classification and embeddings, a `ChatModel` for generation.

    variant: a variant's name (`onnx-int8`) or a target's (`gguf`); the fastest that runs here when
    left out. device: auto, cpu, cuda, cuda:1 and so on, or tensorrt. auto means a GPU for ONNX
    variants of float precisions where ONNX Runtime has one; where it does not start, the CPU is
    used, with a warning on the logger `edgelm`. A GPU asked for by name does not fall back.
    threads: of the engine; all cores the process may use when left out. context_tokens: of a
    generation model, prompt and answer together; the bundle's own when left out, less takes less
    memory. speculate: `predict` and `stream` may guess tokens, which changes no answer of this
    model; for quantized GGUF on CPUs, whose prompts are read slower then. draft: a smaller
    generation bundle of the same tokenizer, which `speculate="draft"` asks for guesses; implies
    `speculate`. parallel: sequences that a generation model's engine holds at once, for those who
    drive it themselves; memory grows with it. trust: which keys must have signed the bundle (and
    the draft), as `Trust(keys=("release.pub",))`; no engine sees a file before its signature and
    digest are good.

    Raises BundleNotFound, BundleVersionError, UntrustedError, TamperedError, BundleError,
    UnknownVariant, MissingExtra, TargetUnavailable, UsageError.
    """
    guesses = speculate or draft is not None
    options = DecoderOptions(device, threads, context_tokens, parallel, guesses)
    bundle = Bundle(Path(path), trust)

    def why_not(candidate: Variant) -> str | None:
        bundle.start_check(candidate)  # beside loading the engine's library, and more
        kind = bundle.manifest.task.kind
        return unavailable(candidate.target, kind, device, guesses=guesses)

    chosen = select_variant(bundle.manifest, variant, why_not)
    if options.kind != "cpu" and variant != chosen.name and _takes_gpu(chosen, bundle, options):
        chosen = best_on_gpu(bundle.manifest, chosen)
    check_engine(chosen)
    if bundle.manifest.task.kind == "text-generation":
        from edgelm.runtime.chat_model import ChatModel

        helper = None if draft is None else _load_draft(Path(draft), bundle, options, trust)
        try:
            return ChatModel(bundle, chosen, options, helper)
        except BaseException:
            if helper is not None:
                helper.close()
            raise
    if guesses or context_tokens is not None or parallel > 1:
        kind = bundle.manifest.task.kind
        raise UsageError(
            f"{path}: its task is {kind}: context_tokens, parallel, speculate and draft are not "
            "for it"
        )
    from edgelm.runtime.text_model import TextModel

    return TextModel(bundle, chosen, options)


def _takes_gpu(variant: Variant, bundle: Bundle, options: DecoderOptions) -> bool:
    """Whether its target opens float precisions on a GPU here."""
    from edgelm.targets import get_target

    able = get_target(variant.target).capabilities()
    has = able.devices_for(bundle.manifest.task.kind)
    return (able.auto_gpu or options.kind != "auto") and "cuda" in has


def _load_draft(path: Path, bundle: Bundle, options: DecoderOptions, trust: Trust) -> ChatModel:
    """Raises UsageError unless its tokens are those of `bundle`."""
    from edgelm.runtime.chat_model import ChatModel

    model = load(path, device=options.device, threads=options.threads, trust=trust)
    own, others = (
        {f.sha256 for f in m.files if f.path == TOKENIZER_FILE}
        for m in (bundle.manifest, model.manifest)
    )
    if not isinstance(model, ChatModel) or own != others:
        model.close()
        raise UsageError(f"{path}: a draft model must generate text with the same tokenizer")
    return model


def unavailable(
    target: str, task: TaskKind, device: Device, *, guesses: bool = False
) -> str | None:
    """Why a target, which may be one this version does not know, cannot do the task here on that
    device; else None."""
    from edgelm.targets import TARGETS, get_target

    if target not in TARGETS:
        return "not known to this version of edgelm"
    found = get_target(target)
    reason = found.available()
    if reason is not None:
        return reason
    kind = split_device(device)[0]
    if kind in ("auto", "cpu") and not guesses:
        return None
    able = found.capabilities()
    if kind not in ("auto", *able.devices_for(task)):
        said = f"no {device} device for {task}"
        return f"{said}: {able.absent[kind]}" if kind in able.absent else said
    if guesses and not able.guesses:
        return "it rounds several tokens otherwise than one, so it cannot be loaded with speculate"
    return None
