"""The sections every report has: training, worst examples, types, recipe, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

from edgelm.compiler.report.blocks import (
    Block,
    Details,
    Facts,
    Figure,
    Figures,
    Paragraph,
    Pre,
    Section,
    Table,
    row,
)
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.plots import Curve, curves_plot, known
from edgelm.compiler.report.text import (
    DASH,
    count,
    decimal,
    plural,
    shorten,
    small,
    three_digits,
)

TEXT_SHOWN = 400  # characters of a worst example


def training(data: ReportData) -> Section:
    """How the model was trained, if it was."""
    info = data.training
    facts: list[tuple[str, str]] = []
    blocks: list[Block] = []
    if info.get("method", "none") == "none":
        blocks.append(Paragraph("The model was compiled as it came, without training."))
    else:
        facts += [("method", str(info["method"]))]
        facts += [("trained parameters", count(info.get("trained_parameters")))]
        facts += [("seconds", three_digits(info.get("seconds")))]
        facts += [("arithmetic", str(info.get("precision", DASH)))]
        facts += [("epochs", str(len(info.get("epochs") or [])))]
    for variant, said in data.manifest.provenance.get("recovered", {}).items():
        how = "rounded anew" if "steps" not in said else f"{plural(said['steps'], 'step')} trained"
        facts.append((f"{variant} recovered", f"{how}, {three_digits(said['seconds'])} s"))
    merge: dict[str, Any] | None = info.get("merge")
    if merge:
        text = f"logits move by at most {small(merge.get('max_abs_diff'))}"
        of = f"largest logit {three_digits(merge['scale'])}, " if merge.get("scale") else ""
        facts.append(("merge check", f"{text} ({of}{plural(merge.get('n', 0), 'text')})"))
    blocks += [Facts(tuple(facts))] if facts else []
    epochs: list[dict[str, Any]] = info.get("epochs") or []
    single = data.manifest.task.problem == "single_label"
    figures = tuple(f for f in (_losses(epochs), _scores(epochs, single)) if f)
    blocks += [Figures(figures)] if figures else []
    if epochs:
        keys = sorted({k for e in epochs for k in e} - {"epoch"}, key=lambda k: (k != "loss", k))
        rows = [row(decimal(e.get("epoch"), 0), *(decimal(e.get(k)) for k in keys)) for e in epochs]
        table = Table(("epoch", *keys), tuple(rows), n_text=0)
        blocks.append(Details("All epochs", (table,)))
    return Section("training", "Training", tuple(blocks))


def _losses(epochs: list[dict[str, Any]]) -> Figure | None:
    curves = _curves(epochs, [("loss", "training"), ("eval_loss", "evaluation")])
    return Figure(curves_plot(curves, "loss"), "Loss by epoch.") if curves else None


def _scores(epochs: list[dict[str, Any]], single: bool) -> Figure | None:
    keys = sorted({k for e in epochs for k in e if k.startswith("eval_")} - {"eval_loss"})
    if single:
        keys = [k for k in keys if k != "eval_micro_f1"]  # it is the accuracy
    curves = _curves(epochs, [(k, k.removeprefix("eval_")) for k in keys])
    if not curves:
        return None
    return Figure(curves_plot(curves, "metric"), "Metrics on the evaluation data by epoch.")


def _curves(epochs: list[dict[str, Any]], names: list[tuple[str, str]]) -> list[Curve]:
    found = [(name, known([(e.get("epoch"), e.get(key)) for e in epochs])) for key, name in names]
    return [Curve(name, points, f"s{i}") for i, (name, points) in enumerate(found) if points]


def worst_examples(
    data: ReportData,
    intro: str,
    head: tuple[str, str, str, str],
    *,
    n_answer: int = 120,
    difference: Callable[[float], str] = small,
) -> Section:
    """The examples on which each variant is farthest from the reference, side by side. `head` names
    the columns; of an answer `n_answer` characters are shown."""
    blocks: list[Block] = [Paragraph(intro)]
    for i, variant in enumerate(data.manifest.variants):
        rows = tuple(
            row(
                shorten(w.text, TEXT_SHOWN), shorten(w.reference, n_answer),
                shorten(w.answer, n_answer), difference(w.difference),
            )
            for w in data.worst.get(variant.name, ())
        )  # fmt: skip
        if rows:
            blocks.append(Details(variant.name, (Table(head, rows, n_text=3),), is_open=i == 0))
    return Section("worst", "Worst examples", tuple(blocks) if len(blocks) > 1 else ())


def types(data: ReportData) -> Section:
    """The types that were chosen for single matrices, of the variants where they were."""
    blocks: list[Block] = []
    for variant in data.manifest.variants:
        rows = tuple(row(name, kind) for name, kind in variant.types.items())
        if rows:
            table = Table(("matrix", "type"), rows, n_text=2)
            blocks.append(Details(f"{variant.name}: {_counted(variant.types.values())}", (table,)))
    return Section("types", "Types of the matrices", tuple(blocks))


def _counted(kinds: Iterable[str]) -> str:
    counts = Counter(kinds)
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


def recipe(text: str) -> Section:
    """The recipe as it was resolved, in YAML."""
    return Section("recipe", "Recipe", (Details("Resolved recipe", (Pre(text),)),))


def provenance(data: ReportData) -> Section:
    """Digests and versions."""
    manifest = data.manifest
    facts = [("bundle format", str(manifest.format)), ("release", str(manifest.release))]
    facts += _flat(manifest.provenance)
    for v in manifest.variants:
        floors = ", ".join(
            f"{name} ≥ {version.removeprefix('>=')}" for name, version in sorted(v.engine.items())
        )
        facts += [(f"{v.name} runs on", floors)] if floors else []
    files = [f for v in manifest.variants for f in v.files]
    rows = tuple(row(f.path, f.sha256, count(f.size_bytes)) for f in files)
    blocks: tuple[Block, ...] = (Facts(tuple(facts)),)
    blocks += (Table(("file", "sha256", "bytes"), rows, n_text=2),) if rows else ()
    title = "Digests, versions and files"
    return Section("provenance", "Provenance", (Details(title, blocks),))


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested mappings as `a b: value`."""
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{above} {key}".strip()
        if isinstance(value, dict):
            found += _flat(cast("dict[str, Any]", value), name)
        else:
            found.append((name, str(value)))
    return found
