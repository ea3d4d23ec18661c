"""Is the bundle whole, and does it answer here as it did where it was compiled?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.bundle import TOKENIZER_DIR, Bundle
from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.engine import DecoderOptions, DecoderSession, EngineOptions
from edgelm.runtime.errors import TamperedError
from edgelm.runtime.floors import check_engine
from edgelm.runtime.generate.score import golden_rows, open_decoder, prompt_ids
from edgelm.runtime.load import unavailable
from edgelm.runtime.manifest import Task, Variant
from edgelm.runtime.metrics import Bools, Floats, cosine
from edgelm.runtime.model import Model
from edgelm.runtime.predictions import label_matrix
from edgelm.runtime.text_model import TextModel

if TYPE_CHECKING:
    from edgelm.targets.precision import Grade

# Engines sum in an order that depends on the processor. On logits of size 10 that moves float
# precisions by 1e-4 and 8-bit ones, whose activations round the other way now and then, by 1e-1.
MAX_DIFF_FLOAT, MAX_DIFF_QUANTIZED = 0.01, 0.25
MIN_COSINE_FLOAT, MIN_COSINE_QUANTIZED = 0.9999, 0.99
# Where half floats are computed in half floats, on GPUs (in torch's half floats the logits of a
# MiniLM moved by 0.005).
MAX_DIFF_HALF, MIN_COSINE_HALF = 0.05, 0.999
# Generation: of a text's mean negative log-likelihood, and of the largest logit after it; half
# floats sum in half floats on some processors, quantized weights meet activations in 8 bits there.
MAX_DIFFS_EXACT, MAX_DIFFS_HALF, MAX_DIFFS_QUANTIZED = (0.002, 0.02), (0.03, 0.3), (0.1, 0.75)


@dataclass(frozen=True)
class Check:
    """The result for one variant, or for the files."""

    name: str
    ok: bool
    skipped: bool
    detail: str


def verify_files(bundle: Bundle) -> Check:
    """Sizes, digests, and no file that the manifest does not name."""
    try:
        bundle.check(bundle.all_files())
    except TamperedError as err:
        return Check("files", False, False, err.message)
    extra = bundle.extra_files()
    if extra:
        return Check("files", False, False, f"not in the manifest: {', '.join(extra[:5])}")
    n = sum(1 for _ in bundle.all_files())
    signed = "" if bundle.signer is None else f", signed by {bundle.signer}"
    return Check("files", True, False, f"{n} files have their packed size and sha256{signed}")


def verify_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> Check:
    """Run the golden texts on this device and compare with what was packed."""
    task = bundle.manifest.task
    reason = unavailable(variant.target, task.kind, options.device)
    if reason is not None:
        return Check(variant.name, True, True, reason)
    check_engine(variant)
    if task.kind == "text-generation":
        decoder = DecoderOptions(options.device, options.threads)
        with closing(open_decoder(bundle, variant, decoder)) as session:
            return check_decoder(bundle, variant, session)
    with closing(TextModel(bundle, variant, options)) as model:
        return check_texts(model)


def check_loaded(bundle: Bundle, model: Model) -> Check:
    """As `verify_variant`, of a model that is loaded and used by nobody else."""
    if isinstance(model, TextModel):
        return check_texts(model)
    assert isinstance(model, ChatModel)
    return check_decoder(bundle, model.variant, model.decoder)


def check_texts(model: TextModel) -> Check:
    """The golden texts' answers of a classifier or embedder."""
    task, variant, golden = model.task, model.variant, model.manifest.golden
    if not golden or len(variant.golden) != len(golden):
        return _no_golden(variant)
    texts = [g.text if g.pair is None else (g.text, g.pair) for g in golden]
    expected = np.array(variant.golden, np.float32)
    found = model.runner.run(texts).values
    max_diff, min_cosine = _limits(_grade(variant), on_gpu=model.device != "cpu")
    if found.shape != expected.shape:
        return Check(variant.name, False, False, f"gave {found.shape}, packed {expected.shape}")
    diff = float(np.abs(found - expected).max())
    if task.kind == "feature-extraction":
        worst = float(cosine(found, expected).min())
        said = f"{len(texts)} golden texts, cosine >= {worst:.5f}"
        return Check(variant.name, worst >= min_cosine, False, said)
    limit = max_diff * max(1.0, float(np.abs(expected).max()) / 10)
    same = int(_labels_hold(task, found, expected, limit).sum())
    detail = f"{same} of {len(texts)} golden labels hold, largest difference {diff:.1e}"
    return Check(variant.name, same == len(texts) and diff <= limit, False, detail)


def _limits(grade: Grade | None, *, on_gpu: bool) -> tuple[float, float]:
    """The largest difference of logits of size 10, and the least cosine of vectors."""
    from edgelm.targets.precision import FLOATS

    if grade not in FLOATS:
        return MAX_DIFF_QUANTIZED, MIN_COSINE_QUANTIZED
    if on_gpu and grade != "f32":
        return MAX_DIFF_HALF, MIN_COSINE_HALF
    return MAX_DIFF_FLOAT, MIN_COSINE_FLOAT


def check_decoder(bundle: Bundle, variant: Variant, session: DecoderSession) -> Check:
    """How likely the golden texts are to a decoder; its first sequence is emptied."""
    manifest = bundle.manifest
    if not manifest.golden or len(variant.golden) != len(manifest.golden):
        return _no_golden(variant)
    texts = [g.text for g in manifest.golden]
    bundle.check_tokenizer()
    rows = prompt_ids(bundle.folder / TOKENIZER_DIR, texts, manifest.task, manifest.text)
    found = golden_rows(session, [ids[: session.context_tokens] for ids in rows])
    expected = np.array(variant.golden)
    if found.shape != expected.shape:
        return Check(variant.name, False, False, f"gave {found.shape}, packed {expected.shape}")
    diff = np.abs(found - expected)
    same = int((diff <= golden_limits(_grade(variant), expected)).all(axis=1).sum())
    loss, logit = diff.max(axis=0).tolist()
    detail = (
        f"{same} of {len(texts)} golden texts are as likely as packed: largest difference of a "
        f"token's mean log-likelihood {loss:.1e}, of the largest logit {logit:.1e}"
    )
    return Check(variant.name, same == len(texts), False, detail)


def _no_golden(variant: Variant) -> Check:
    return Check(variant.name, False, False, "the bundle holds no golden answers")


def _grade(variant: Variant) -> Grade | None:
    from edgelm.targets import grade_of

    return grade_of(variant.target, variant.precision)


def golden_limits(grade: Grade | None, expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the two numbers of each text may be from the packed ones, (N, 2)."""
    from edgelm.targets.precision import FLOATS

    limits = MAX_DIFFS_QUANTIZED
    if grade in FLOATS:
        limits = MAX_DIFFS_EXACT if grade == "f32" else MAX_DIFFS_HALF
    return np.array(limits) * np.maximum(1.0, np.abs(expected) / 10)


def _labels_hold(task: Task, found: Floats, expected: Floats, limit: float) -> Bools:
    """Whether each text has its packed labels, (N,); those nearer than `limit` may flip."""
    same = label_matrix(task, found) == label_matrix(task, expected)
    if task.problem == "multi_label":
        edge = np.log(task.threshold / (1 - task.threshold))
        return (same | (np.abs(expected - edge) < limit)).all(axis=1)
    best = np.sort(expected, axis=1)
    return same.all(axis=1) | (best[:, -1] - best[:, -2] < limit)
