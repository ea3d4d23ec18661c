"""Bits: a file of llama.cpp's own, and edgelm's of the same size, compared by one evaluator.

The files of a fixed type are llama.cpp's work: its quantizer and its importance matrix. Each is
then the size that `gguf:auto` has to keep to. Both are compared with the float model by edgelm's
verification, on text that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from _lib.compiled import OPEN_CHAT_LIMITS, run_compile
from _lib.results import Goal, goals_table, table
from edgelm.runtime.manifest import Variant


def section(
    state: Path, name: str, arguments: Sequence[str], kinds: Mapping[str, float], *, about: str
) -> str:
    """A table of `kinds` (type of the file -> the goal: at most this share of its divergence), and
    the goals."""
    arguments = [*arguments, *OPEN_CHAT_LIMITS]
    targets = [part for kind in kinds for part in ("--target", f"gguf:{kind}")]
    theirs = run_compile(
        state, f"{name}-fixed", [*arguments, *targets, "--recover", "none"], fresh=False
    )
    by_name = {variant.name: variant for variant in theirs.manifest.variants}
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for kind, most in kinds.items():
        fixed = by_name[f"gguf-{kind}"]
        auto = ["--target", "gguf:auto", "--auto-size", f"{fixed.size_bytes}B"]
        ours = run_compile(state, f"{name}-{kind}", [*arguments, *auto], fresh=False)
        (chosen,) = ours.manifest.variants
        assert chosen.size_bytes <= fixed.size_bytes
        share = _divergence(chosen) / _divergence(fixed)
        rows += [[f"llama.cpp {kind}", *_cells(fixed), "1"]]
        rows += [["edgelm auto", *_cells(chosen), f"{share:.2f}"]]
        what = f"mean KL at the size of {kind}, as a share of llama.cpp's"
        goals.append(Goal(what, f"<= {most:g}", f"{share:.2f}", share <= most))
    head = ["file", "bytes", "mean KL", "99.9 % KL", "equal likeliest token", "share of the KL"]
    return "\n\n".join([about, table(head, rows), goals_table(goals)])


def _divergence(variant: Variant) -> float:
    assert variant.parity is not None and variant.parity.kl_divergence is not None
    return variant.parity.kl_divergence


def _cells(variant: Variant) -> list[str]:
    parity = variant.parity
    assert parity is not None and parity.agreement is not None and parity.kl_p999 is not None
    return [
        f"{variant.size_bytes:,}",
        f"{_divergence(variant):.4f}",
        f"{parity.kl_p999:.2f}",
        f"{100 * parity.agreement:.1f} %",
    ]
