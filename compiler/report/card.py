"""card.md: what the bundle answers, how to use it, how good it is and how far that holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from edgelm.compiler.report.blocks import CardParts
from edgelm.compiler.report.data import ReportData
from edgelm.compiler.report.kinds import kind_of
from edgelm.compiler.report.text import (
    DASH,
    count,
    markdown,
    one_line,
    plural,
    shorten,
    small,
    three_digits,
)
from edgelm.runtime.manifest import Manifest

NOTES_SHOWN = 8


def render_card(data: ReportData) -> str:
    """The card in Markdown; texts of users are escaped and stay in their line."""
    manifest, says = data.manifest, kind_of(data).card()
    parts = [
        f"# {markdown(manifest.name)} {markdown(manifest.version)}",
        says.answers,
        "## Use",
        _python(manifest, says),
        _shell(manifest, says),
        "## Variants",
        says.variants,
        "## Data and training",
        says.data,
        _notes([*data.notes, *says.notes]),
        _training(data),
        "## Limits of use",
        _items([*says.limits, _ELSEWHERE]),
        "## How it was verified",
        _items([*says.verified, *_verified(data)]),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


_ELSEWHERE = "Speed and memory differ on other machines: `edgelm bench` measures them there."


def _python(manifest: Manifest, says: CardParts) -> str:
    path = json.dumps(_path(manifest), ensure_ascii=False)
    return f"```python\nimport edgelm\n\nmodel = edgelm.load({path})\n{says.python}\n```"


def _shell(manifest: Manifest, says: CardParts) -> str:
    path = shlex.quote(_path(manifest))
    targets = sorted({v.target for v in manifest.variants})
    lines = [f'pip install "edgelm[{",".join(targets)}]"'] if targets else []
    lines += [
        f"edgelm predict {path} {says.shell}",
        f"edgelm verify {path}     # checks files and answers on this device",
    ]
    return "```sh\n" + "\n".join(lines) + "\n```"


def _path(manifest: Manifest) -> str:
    # a fence of backticks must not be closed from inside
    return f"{one_line(manifest.name).replace('`', '')}.edgelm"


def _items(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _notes(notes: Sequence[str]) -> str:
    unique = list(dict.fromkeys(notes))
    lines = [markdown(shorten(one_line(n), 300)) for n in unique[:NOTES_SHOWN]]
    if len(unique) > NOTES_SHOWN:
        lines.append(f"{plural(len(unique) - NOTES_SHOWN, 'more note')} in `report.html`")
    return _items(lines)


def _training(data: ReportData) -> str:
    info = data.training
    if info.get("method", "none") == "none":
        return "The model was compiled as it came, without training."
    epochs = len(info.get("epochs") or [])
    text = f"Trained with {markdown(str(info['method']))}"
    text += f" for {plural(epochs, 'epoch')}" if epochs else ""
    text += f" in {three_digits(info.get('seconds'))} s: {count(info.get('trained_parameters'))}"
    return f"{text} parameters, {markdown(str(info.get('precision', DASH)))} arithmetic."


def _verified(data: ReportData) -> list[str]:
    """What is said of every kind of task."""
    manifest = data.manifest
    merge = data.training.get("merge")
    skipped = [markdown(v.name) for v in manifest.variants if v.parity is None]
    items: list[str] = []
    if skipped:
        items.append(f"Not compared: {', '.join(skipped)}.")
    if merge:
        items.append(
            "The merged weights answer as the trained model did: logits differ by at most "
            f"{small(merge.get('max_abs_diff'))} on {plural(merge.get('n', 0), 'text')}."
        )
    if manifest.golden:
        items.append(
            f"{plural(len(manifest.golden), 'golden text')} with each variant's answers are in "
            "`edgelm.json`; `edgelm verify` runs them again on the device and checks all digests."
        )
    return items
