"""Rules of a recipe that a type cannot state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgelm.compiler.shrinking import DistilConfig, PruneConfig
from edgelm.compiler.units import BYTES, LATENCY, TIME, parse, parse_bytes
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.schema import nearest
from edgelm.targets import TARGETS, get_target
from edgelm.targets.gguf.precisions import TENSOR_TYPES
from edgelm.targets.precision import AUTO

if TYPE_CHECKING:
    from edgelm.compiler.recipe import Recipe

Rule = Callable[[bool, str, object, str], None]  # holds, key, value, what the rule says
_MOST = {  # the largest sensible value of each limit
    "min_agreement": 1.0,
    "max_drop": 1.0,
    "max_kl": math.inf,
    "min_cosine": 1.0,
    "max_kl_p999": math.inf,
    "max_perplexity_ratio": math.inf,
    "min_gain_kept": 1.0,
}


def split_target(spec: str) -> tuple[str, str]:
    """`onnx:int8` -> ("onnx", "int8"). Raises RecipeError."""
    target, _, precision = spec.partition(":")
    if target not in TARGETS:
        raise RecipeError(
            f"targets: unknown target {target!r} in {spec!r}{nearest(target, TARGETS)}",
            hint=f"known targets: {', '.join(TARGETS)}",
        )
    known = [row.name for row in get_target(target).precisions]
    if precision not in known:
        raise RecipeError(
            f"targets: {target} has no precision {precision!r}{nearest(precision, known)}",
            hint=f"{target} has {', '.join(known)}",
        )
    return target, precision


def check(recipe: Recipe) -> None:
    """Raise RecipeError for the first rule that is broken, naming key, value and rule."""

    def rule(ok: bool, key: str, value: object, says: str) -> None:
        if not ok:
            raise RecipeError(f"{key}: {value!r}: {says}")

    rule(bool(recipe.model), "model", recipe.model, "a recipe needs a model")
    rule(bool(recipe.targets), "targets", recipe.targets, "at least one TARGET:PRECISION is needed")
    rule(
        len(set(recipe.targets)) == len(recipe.targets), "targets", recipe.targets,
        "a target stands twice",
    )  # fmt: skip
    for spec in recipe.targets:
        split_target(spec)
    for spec in recipe.verify.limits:
        rule(spec in recipe.targets, "verify.limits", spec, "is not among the targets")
    for where, limits in (("verify", recipe.verify), *recipe.verify.limits.items()):
        for name, most in _MOST.items():
            value = getattr(limits, name)
            says = "must be 0 or more" if most == math.inf else f"must be 0 to {most:g}"
            rule(value is None or 0 <= value <= most, f"{where}.{name}", value, says)
    d, t, lo, q = recipe.data, recipe.train, recipe.lora, recipe.quantize
    rule(
        recipe.max_tokens is None or 4 <= recipe.max_tokens <= 65536, "max_tokens",
        recipe.max_tokens, "must be 4 to 65536",
    )  # fmt: skip
    rule(0 <= recipe.seed < 2**32, "seed", recipe.seed, "must be 0 to 4294967295")
    rule(recipe.release >= 1, "release", recipe.release, "must be at least 1")
    rule(recipe.threads is None or recipe.threads >= 1, "threads", recipe.threads, "must be >= 1")
    rule(0 < recipe.threshold < 1, "threshold", recipe.threshold, "must lie between 0 and 1")
    rule(0 < d.eval_fraction < 1, "data.eval_fraction", d.eval_fraction, "must lie between 0 and 1")
    rule(
        t.epochs is None or 0 < t.epochs < math.inf, "train.epochs", t.epochs,
        "must be above 0, and a number",
    )  # fmt: skip
    rule(
        t.batch_size is None or t.batch_size >= 1, "train.batch_size", t.batch_size,
        "must be at least 1",
    )  # fmt: skip
    rule(
        t.gradient_accumulation >= 1, "train.gradient_accumulation", t.gradient_accumulation,
        "must be at least 1",
    )  # fmt: skip
    rule(
        t.learning_rate is None or 0 < t.learning_rate < 1, "train.learning_rate",
        t.learning_rate, "must lie between 0 and 1",
    )  # fmt: skip
    rule(0 <= t.warmup < 1, "train.warmup", t.warmup, "must be 0 or more and under 1")
    rule(0 <= t.weight_decay < math.inf, "train.weight_decay", t.weight_decay, "must be 0 or more")
    rule(t.early_stop >= 0, "train.early_stop", t.early_stop, "must be 0 or more")
    rule(lo.rank >= 1, "lora.rank", lo.rank, "must be at least 1")
    rule(lo.alpha is None or lo.alpha >= 1, "lora.alpha", lo.alpha, "must be at least 1")
    if lo.dropout is not None:
        rule(0 <= lo.dropout < 1, "lora.dropout", lo.dropout, "must be 0 or more and under 1")
    v = recipe.verify
    rule(v.eval_tokens >= 1, "verify.eval_tokens", v.eval_tokens, "must be at least 1")
    rule(v.eval_answers >= 1, "verify.eval_answers", v.eval_answers, "must be at least 1")
    rule(
        q.calibration_texts >= 1, "quantize.calibration_texts", q.calibration_texts, "must be >= 1"
    )
    if q.smooth is not None:
        rule(0 <= q.smooth <= 1, "quantize.smooth", q.smooth, "must be 0 to 1")
        rule(
            recipe.task != "text-generation", "quantize.smooth", q.smooth,
            "is for classification and embeddings",
        )  # fmt: skip
        rule(
            d.train is not None, "quantize.smooth", q.smooth,
            "needs training texts: name them with --train FILE (with --no-train they are not "
            "trained on)",
        )  # fmt: skip
    rule(q.imatrix_tokens >= 1, "quantize.imatrix_tokens", q.imatrix_tokens, "must be >= 1")
    r = recipe.recover
    rule(
        0 < r.epochs < math.inf, "recover.epochs", r.epochs, "must be above 0, and a number",
    )  # fmt: skip
    rule(
        r.batch_size is None or r.batch_size >= 1, "recover.batch_size", r.batch_size,
        "must be at least 1",
    )  # fmt: skip
    rule(
        0 < r.learning_rate < 1, "recover.learning_rate", r.learning_rate,
        "must lie between 0 and 1",
    )  # fmt: skip
    rule(r.rounding_tokens >= 1, "recover.rounding_tokens", r.rounding_tokens, "must be >= 1")
    _check_types(recipe, rule)
    rule(
        not (recipe.task == "feature-extraction" and t.method in ("lora", "full")),
        "train.method", t.method, "embeddings are compiled as they are: fine-tune before",
    )  # fmt: skip
    size = recipe.gguf.split_size_mb
    rule(size is None or size >= 1, "gguf.split_size_mb", size, "must be at least 1")
    _check_pruning(recipe, rule)
    _check_shrinking(recipe, rule)
    _check_budget(recipe, rule)
    _check_generation(recipe, rule)


def _check_types(recipe: Recipe, rule: Rule) -> None:
    q = recipe.quantize
    autos = [spec for spec in recipe.targets if spec.endswith(f":{AUTO}")]
    if q.auto_size is not None:
        parse_bytes("quantize.auto_size", q.auto_size)
    says = (
        f"is needed for {', '.join(autos)}: name the largest size of its files with "
        "--auto-size 90MB"
    )
    has_size = q.auto_size is not None or recipe.budget.max_size is not None
    rule(not autos or has_size, "quantize.auto_size", q.auto_size, says)
    for kind in q.auto_types:
        says = f"is no tensor type{nearest(kind, TENSOR_TYPES)}"
        rule(kind in TENSOR_TYPES, "quantize.auto_types", kind, says)
    for pattern, kind in q.tensor_types.items():
        says = f"is no tensor type{nearest(kind, TENSOR_TYPES)}"
        rule(kind in TENSOR_TYPES, f"quantize.tensor_types.{pattern}", kind, says)
        rule(_is_pattern(pattern), "quantize.tensor_types", pattern, "is no regular expression")


def _check_pruning(recipe: Recipe, rule: Rule) -> None:
    p = recipe.prune
    if p.sparsity is not None:
        rule(0 < p.sparsity < 1, "prune.sparsity", p.sparsity, "must be over 0 and under 1")
        rule(
            recipe.task != "text-generation", "prune.sparsity", p.sparsity,
            "is for classification and embeddings",
        )  # fmt: skip
        rule(
            p.pattern != "2:4" or p.sparsity == 0.5, "prune.sparsity", p.sparsity,
            "the pattern 2:4 leaves half of the weights: must be 0.5",
        )  # fmt: skip
        rule(
            p.method != "wanda" or recipe.data.train is not None, "prune.method", p.method,
            "needs training texts: name them with --train FILE (with --no-train they are not "
            "trained on), or take magnitude",
        )  # fmt: skip
    else:
        for name in ("pattern", "method"):
            value = getattr(p, name)
            says = "needs prune.sparsity (--sparsity)"
            rule(value == getattr(PruneConfig(), name), f"prune.{name}", value, says)
    if not p.vocab:
        for name, value in (("vocab_size", p.vocab_size), ("vocab_texts", p.vocab_texts)):
            says = "needs prune.vocab (--trim-vocab)"
            rule(value is None, f"prune.{name}", value, says)
        return
    rule(
        recipe.task != "text-generation", "prune.vocab", p.vocab,
        "vocabularies of text-generation models are not trimmed: there tokens are also answered",
    )  # fmt: skip
    rule(
        recipe.data.train is not None or p.vocab_texts is not None, "prune.vocab", p.vocab,
        "needs texts to choose tokens by: --train FILE (with --no-train it is not trained on) or "
        "--vocab-texts FILE",
    )  # fmt: skip
    rule(
        p.vocab_size is None or p.vocab_size >= 1, "prune.vocab_size", p.vocab_size, "must be >= 1"
    )


def _check_shrinking(recipe: Recipe, rule: Rule) -> None:
    p, d = recipe.prune, recipe.distil
    cuts = {"layers": p.layers, "heads": p.heads, "ffn": p.ffn}
    for name, value in cuts.items():
        if value is None:
            continue
        rule(
            0 < value < 1 or (1 <= value < math.inf and value == int(value)), f"prune.{name}",
            value, "must be a share under 1, or a whole number",
        )  # fmt: skip
        says = "is for a model that loses parts: leave distil.student out"
        rule(d.student is None, f"prune.{name}", value, says)
    says = "a student brings its whole vocabulary: leave prune.vocab (--trim-vocab) out"
    rule(d.student is None or not p.vocab, "distil.student", d.student, says)
    generates = recipe.task == "text-generation"
    says = "is for encoders, not for text-generation"
    rule(d.unlabelled is None or not generates, "distil.unlabelled", d.unlabelled, says)
    says = "is for text-generation"
    rule(d.direction == "forward" or generates, "distil.direction", d.direction, says)
    rule(not d.samples or generates, "distil.samples", d.samples, says)
    rule(0 <= d.samples <= 1, "distil.samples", d.samples, "must be 0 to 1")
    defaults = DistilConfig()
    embeds = recipe.task == "feature-extraction"
    says = "embeddings have no labels to soften: leave it out"
    rule(d.temperature is None or not embeds, "distil.temperature", d.temperature, says)
    says = "embeddings have no labels: leave it out"
    is_used = d.label_weight not in (0, defaults.label_weight)
    rule(not (is_used and embeds), "distil.label_weight", d.label_weight, says)
    is_used = d.hidden_weight not in (0, defaults.hidden_weight)
    says = "hidden states are not kept for text-generation: leave it out"
    rule(not (is_used and generates), "distil.hidden_weight", d.hidden_weight, says)
    says = "is for encoders, not for text-generation: leave it out"
    rule(not (d.relation_weight and generates), "distil.relation_weight", d.relation_weight, says)
    says = "of a distil.student no layer belongs to one of the teacher's: "
    says += "take distil.relation_weight"
    rule(not (is_used and d.student), "distil.hidden_weight", d.hidden_weight, says)
    says = "a distil.student loses no parts, in however many steps: leave it out"
    rule(d.steps == defaults.steps or not d.student, "distil.steps", d.steps, says)
    says = "a distil.student loses no layers: leave it out"
    rule(p.layer_choice == "even" or not d.student, "prune.layer_choice", p.layer_choice, says)
    is_shrunk = d.student is not None or any(value is not None for value in cuts.values())
    says = "needs something to learn for: prune.layers, prune.heads, prune.ffn or distil.student"
    rule(d.unlabelled is None or is_shrunk, "distil.unlabelled", d.unlabelled, says)
    says = "needs texts to ask the teacher about: --train FILE (with --no-train it is not "
    says += "fine-tuned on) or --unlabelled FILE"
    has_texts = recipe.data.train is not None or d.unlabelled is not None
    rule(not is_shrunk or has_texts, "distil", "no texts", says)
    for name in ("epochs", "temperature"):
        value = getattr(d, name)
        says = "must be above 0, and a number"
        rule(value is None or 0 < value < math.inf, f"distil.{name}", value, says)
    rule(
        d.learning_rate is None or 0 < d.learning_rate < 1, "distil.learning_rate",
        d.learning_rate, "must lie between 0 and 1",
    )  # fmt: skip
    for name in ("label_weight", "hidden_weight", "relation_weight"):
        value = getattr(d, name)
        rule(0 <= value < math.inf, f"distil.{name}", value, "must be 0 or more, and a number")
    rule(1 <= d.steps <= 20, "distil.steps", d.steps, "must be 1 to 20")
    most = math.inf if generates else 1
    says = "must be 0 or more" if generates else "must be 0 to 1"
    rule(d.max_drop is None or 0 <= d.max_drop <= most, "distil.max_drop", d.max_drop, says)


def _check_budget(recipe: Recipe, rule: Rule) -> None:
    b, m = recipe.budget, recipe.measure
    for name, units in (
        ("max_size", BYTES), ("max_memory", BYTES), ("max_latency", LATENCY), ("time_budget", TIME),
    ):  # fmt: skip
        text = getattr(b, name)
        if text is not None:
            parse(f"budget.{name}", text, units)
    drop, least = b.max_drop, b.min_metric
    rule(drop is None or 0 <= drop < 100, "budget.max_drop", drop, "must be 0 or more, under 100")
    rule(
        least is None or 0 < least <= 1, "budget.min_metric", least,
        "must be over 0, and at most 1: metrics are shares",
    )  # fmt: skip
    rule(1 <= b.halving <= 10, "budget.halving", b.halving, "must be 1 to 10")
    rule(b.study != "", "budget.study", b.study, "must be a URL, or the path of a journal file")
    rule(m.batch >= 1, "measure.batch", m.batch, "must be at least 1")
    rule(m.tokens is None or m.tokens >= 4, "measure.tokens", m.tokens, "must be at least 4")
    if m.tokens is not None:
        most = recipe.max_tokens or 128
        rule(m.tokens <= most, "measure.tokens", m.tokens, f"texts are cut to {most} (max_tokens)")
    if recipe.task == "text-generation":
        says = "generation is measured by its first token, after a prompt of median length"
        rule(m.batch == 1, "measure.batch", m.batch, says)
        rule(m.tokens is None, "measure.tokens", m.tokens, says)
        says = "of perplexity less is better: state budget.max_drop, in per cent of it"
        rule(least is None, "budget.min_metric", least, says)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _check_generation(recipe: Recipe, rule: Rule) -> None:
    d = recipe.data
    if recipe.task != "text-generation":
        says = "is for text-generation: merge the adapter into the model before"
        rule(recipe.adapter is None, "adapter", recipe.adapter, says)
        rule(d.kind == "auto", "data.kind", d.kind, "is for text-generation")
        return
    for key, value in (("pair", d.pair), ("label", d.label), ("multi_label", d.multi_label)):
        rule(value is None, f"data.{key}", value, "generation has neither pairs nor labels")
    rule(
        d.text is None or d.kind in ("auto", "text"), "data.text", d.text,
        f"names the column of plain texts, but the rows are to be of the kind {d.kind!r}",
    )  # fmt: skip
    rule(
        recipe.adapter is None or recipe.train.method in ("auto", "none"), "adapter",
        recipe.adapter, "is merged instead of training: leave train.method out",
    )  # fmt: skip
