"""From a context to the manifest and files of a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edgelm.compiler.context import Context, VariantState
from edgelm.runtime.files import sha256_file
from edgelm.runtime.manifest import FILE_NAME as MANIFEST_NAME
from edgelm.runtime.manifest import FORMAT, FileEntry, GoldenText, Manifest, Variant

GOLDEN_DIGITS = 5


def file_entry(root: Path, path: Path) -> FileEntry:
    """The manifest's entry of a file below `root`."""
    return FileEntry(path.relative_to(root).as_posix(), sha256_file(path), path.stat().st_size)


def manifest_variant(state: VariantState) -> Variant:
    """What the manifest says of a variant, as far as it is known."""
    inside = state.folder / "variants" / state.name
    golden: tuple[tuple[float, ...], ...] = ()
    if state.golden is not None:
        golden = tuple(tuple(round(float(x), GOLDEN_DIGITS) for x in row) for row in state.golden)
    return Variant(
        name=state.name,
        target=state.target,
        precision=state.precision,
        files=tuple(file_entry(state.folder, inside / f) for f in sorted(state.lowered.files)),
        options=state.lowered.options,
        engine=state.lowered.engine,
        parity=state.parity,
        metrics={k: round(v, 6) for k, v in state.metrics.items()},
        measured=state.measured,
        golden=golden,
        types=state.lowered.types,
    )


def build_manifest(context: Context, name: str, variants: Iterable[VariantState]) -> Manifest:
    """The manifest with no files outside variants/ yet."""
    assert context.task and context.text
    return Manifest(
        format=FORMAT,
        name=name,
        version=context.recipe.version,
        release=context.recipe.release,
        task=context.task,
        text=context.text,
        files=(),
        variants=tuple(manifest_variant(v) for v in variants),
        reference={k: round(v, 6) for k, v in context.reference_metrics.items()},
        original={k: round(v, 6) for k, v in context.original_metrics.items()},
        golden=tuple(
            GoldenText(*t) if isinstance(t, tuple) else GoldenText(t) for t in context.golden
        ),
    )


def write_bundle(
    context: Context, manifest: Manifest, folder: Path, extra: dict[str, str] | None = None
) -> Manifest:
    """Fill the empty `folder`: tokenizer, variants, `extra` text files, and last the manifest."""
    assert context.tokenizer_dir is not None
    shutil.copytree(context.tokenizer_dir, folder / "tokenizer")
    for variant in manifest.variants:
        source = context.variants[variant.name].folder
        for entry in variant.files:
            _copy(source / entry.path, folder / entry.path)
    for path, text in (extra or {}).items():
        (folder / path).write_text(text, encoding="utf-8")
    outside = [p for p in folder.rglob("*") if p.is_file()]
    inside = {folder / e.path for v in manifest.variants for e in v.files}
    files = tuple(file_entry(folder, p) for p in sorted(set(outside) - inside))
    manifest = replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _copy(source: Path, target: Path) -> None:
    # never a link: a bundle must not change with the cache
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)
