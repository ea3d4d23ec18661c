"""trim: the vocabulary is cut to the tokens that the user's texts use.

Writes `model/`, a Hugging Face directory whose tokenizer, config and embeddings know the tokens
that stay, numbered anew in their old order. The classification head and all other weights stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.compiler.context import Context, Source, Trimmed, as_text, eval_texts
from edgelm.compiler.embedding_rows import named_ids, save_model, save_tokenizer
from edgelm.compiler.hf import (
    load_model,
    load_tokenizer,
    reference_outputs,
    torch_threads,
    versions,
)
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.intake import has_head, read_json
from edgelm.compiler.vocabulary import HINT, Vocabulary
from edgelm.runtime.errors import DataError, ModelError, VerificationError
from edgelm.runtime.files import sha256_file
from edgelm.runtime.lines import text_lines
from edgelm.runtime.manifest import Task
from edgelm.runtime.schema import encode
from edgelm.runtime.tokenizer import Text
from edgelm.targets.causal import is_causal

PROBES = 32  # texts on which the models before and after are compared
MAX_ABS_DIFF = 1e-4  # of their outputs: equal rows in a smaller table
FEW_AS_BEFORE = 0.9  # share of evaluation texts under which the user is told what helps
_SLICE = 1024  # texts that are tokenized at once


class Trim(Pass):
    """Replaces context.source and context.text; sets context.trimmed."""

    name = "trim"

    def inputs(self, context: Context) -> dict[str, Any]:
        assert context.source and context.text
        if is_causal(context.source.folder):
            raise ModelError(
                f"prune.vocab: {context.source.folder} is a decoder ({context.source.model_type}): "
                "the vocabularies of encoders alone are trimmed",
                hint=HINT,
            )
        file = context.recipe.prune.vocab_texts
        return {
            "model": context.source.digest,
            "head": has_head(context.source.config),
            "text": encode(context.text),
            "data": context.data_digest,
            "texts": sha256_file(_texts_file(file)) if file is not None else None,
            "size": context.recipe.prune.vocab_size,
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def run(self, context: Context, folder: Path) -> None:
        source = context.source
        assert source and context.text
        tokenizer = load_tokenizer(source.folder)
        vocabulary = Vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
        texts = list(_texts(context))
        counts = Counter(i for row in _token_ids(tokenizer, texts) for i in row)
        size = context.recipe.prune.vocab_size
        kept = sorted(vocabulary.choose(counts, named_ids(source) & vocabulary.ids, size))
        model = folder / "model"
        save_tokenizer(tokenizer, vocabulary.trimmed(kept), model)
        n_before, n_after = save_model(source, kept, model)
        trimmed = load_tokenizer(model)
        new = {old: i for i, old in enumerate(kept)}
        _check_ids(tokenizer, trimmed, texts, new)
        limit = context.text.max_tokens
        with torch_threads(context.recipe.threads):
            check_outputs(source, model, texts, new, limit)
        special = set(vocabulary.added)
        coverage = _coverage(tokenizer, trimmed, eval_texts(context), new, special, limit)
        report = {
            "tokens_before": n_before,
            "tokens_after": n_after,
            "size_bytes_before": _weights_bytes(source.folder),
            "size_bytes_after": _weights_bytes(model),
            **coverage,
        }
        (folder / "trim.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def load(self, context: Context, folder: Path) -> None:
        assert context.source and context.text
        report = json.loads((folder / "trim.json").read_text(encoding="utf-8"))
        context.trimmed = Trimmed(context.source, report)
        config = read_json(folder / "model" / "config.json")
        context.source = replace(
            context.source,
            folder=folder / "model",
            config=config,
            digest=context.digests[self.name],
        )
        pad_id = int(load_tokenizer(context.source.folder).pad_token_id)
        context.text = replace(context.text, pad_id=pad_id)
        context.note(note(report))
        if report["eval_texts_as_before"] < FEW_AS_BEFORE:
            context.note(
                "many evaluation texts are cut into other tokens than before: more texts with "
                "--vocab-texts FILE keep more of the vocabulary"
            )


def note(report: dict[str, Any]) -> str:
    """What the user is told."""
    before, after = (report[f"size_bytes_{when}"] / 1e6 for when in ("before", "after"))
    return (
        f"vocabulary trimmed from {report['tokens_before']:,} to {report['tokens_after']:,} "
        f"tokens, weights from {before:.1f} to {after:.1f} MB; of the evaluation texts' tokens "
        f"{report['eval_tokens_kept']:.2%} are kept, and {report['eval_texts_as_before']:.2%} of "
        f"the texts have the same tokens as before"
    )


def check_outputs(
    source: Source, folder: Path, texts: Sequence[Text], new: dict[int, int], max_tokens: int
) -> None:
    """Raise VerificationError unless both models answer alike on texts whose tokens all stayed."""
    before, after = load_tokenizer(source.folder), load_tokenizer(folder)
    ids = zip(texts, _token_ids(before, texts), _token_ids(after, texts), strict=True)
    same = [text for text, a, b in ids if [new.get(i) for i in a] == b]
    probes = [text for text in same if type(text) is type(same[0])][:PROBES]  # no mix with pairs
    if not probes:
        return
    task = Task(kind="feature-extraction", pooling="mean")  # of the body; no head was touched
    answers = [
        reference_outputs(load_model(where, task, new_head=False), t, task, probes, max_tokens)
        for where, t in ((source.folder, before), (folder, after))
    ]
    diff = float(np.abs(answers[0] - answers[1]).max())
    if not diff <= MAX_ABS_DIFF:
        raise VerificationError(
            f"trim: outputs differ by {diff:.3g} between the model with its whole vocabulary and "
            f"with the trimmed one, over the limit {MAX_ABS_DIFF:.3g}",
            hint=HINT,
        )


def _texts_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError("no such file (prune.vocab_texts)", path=path)
    return path


def _texts(context: Context) -> Iterator[Text]:
    """The training texts and the lines of `prune.vocab_texts`; never the evaluation texts."""
    assert context.data
    yield from (as_text(example) for example in context.data.train)
    file = context.recipe.prune.vocab_texts
    if file is not None:
        yield from (line for line in text_lines(_texts_file(file)) if line.strip())


def _token_ids(
    tokenizer: Any, texts: Sequence[Text], max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Token ids of each text."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    if max_tokens is not None:
        backend.enable_truncation(max_tokens)
    for start in range(0, len(texts), _SLICE):
        for found in backend.encode_batch_fast(texts[start : start + _SLICE]):
            yield found.ids


def _check_ids(before: Any, after: Any, texts: Sequence[Text], new: dict[int, int]) -> None:
    """Raise VerificationError unless texts with no unknown word whose tokens all stay are cut as
    before."""
    unknown = before.unk_token_id
    old, got = _token_ids(before, texts), _token_ids(after, texts)
    for text, a, b in zip(texts, old, got, strict=True):
        stays = all(i in new and i != unknown for i in a)
        if stays and [new[i] for i in a] != b:
            raise VerificationError(
                f"trim: the tokens of {str(text)[:80]!r} are other ones with the trimmed "
                "vocabulary, though all of them are in it",
                hint=HINT,
            )


def _coverage(
    before: Any,
    after: Any,
    texts: Sequence[Text],
    new: dict[int, int],
    special: set[int],
    max_tokens: int,
) -> dict[str, float]:
    """Shares of the tokens that are kept, special ones aside, and of the texts cut as before."""
    n_tokens = n_kept = n_same = 0
    old, got = _token_ids(before, texts, max_tokens), _token_ids(after, texts, max_tokens)
    for a, b in zip(old, got, strict=True):
        plain = [i for i in a if i not in special]
        n_tokens += len(plain)
        n_kept += sum(i in new for i in plain)
        n_same += [new.get(i) for i in a] == b
    return {
        "eval_tokens_kept": n_kept / max(n_tokens, 1),
        "eval_texts_as_before": n_same / len(texts),
    }


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
