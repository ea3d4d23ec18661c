"""edgelm predict"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.commands.generate_flags import generate_flags, given, speculates
from edgelm.runtime.commands.trust_flags import trust_flags
from edgelm.runtime.engine import Device

if TYPE_CHECKING:
    from edgelm.runtime.chat_model import ChatModel
    from edgelm.runtime.streams import Row
    from edgelm.runtime.text_model import TextModel
    from edgelm.runtime.trust.policy import Trust

PROMPTS_AT_ONCE = 32


@click.command(name="predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="A txt, csv, jsonl … file.")
@click.option("--variant", help="A variant's or a target's name; the fastest when left out.")
@device_option()
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--draft", type=click.Path(path_type=Path), help="A smaller bundle, for guesses.")
@click.option("--all-scores", is_flag=True, help="Give the probability of every label.")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "error", "slide"]),
    help="Over the token limit: truncate (the default of classifiers and embedders), error "
    "(that of generation), or slide, which forgets the oldest tokens (generation).",
)
@click.option("--text-column", help="Column of the text in the file.")
@click.option("--pair-column", help="Column of the second text in the file.")
@click.option("--raw", is_flag=True, help="Generation: continue the text as it stands.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@trust_flags
@generate_flags("on_long")
def command(
    bundle: Path,
    texts: tuple[str, ...],
    file: Path | None,
    variant: str | None,
    device: Device,
    threads: int | None,
    draft: Path | None,
    all_scores: bool,
    on_long: str | None,
    text_column: str | None,
    pair_column: str | None,
    raw: bool,
    quiet: bool,
    trust: Trust,
    **flags: Any,
) -> None:
    """Answer TEXTS, a file, or the lines of stdin, as JSON lines in the same order.

    A bundle that answers pairs takes TEXTS two by two, and a tab within each line of stdin. A
    generation bundle also takes files with a column of `messages`.
    """
    from edgelm.runtime.chat_model import ChatModel
    from edgelm.runtime.errors import UsageError
    from edgelm.runtime.load import load
    from edgelm.runtime.streams import file_rows, line_rows, prompt_rows
    from edgelm.runtime.text_model import TextModel

    if texts and file is not None:
        raise UsageError("give either texts or --file, not both")
    with load(
        bundle,
        variant=variant,
        device=device,
        threads=threads,
        speculate=speculates(flags),
        draft=draft,
        trust=trust,
    ) as model:
        numbered, quiet = not texts, quiet or bool(texts)
        if isinstance(model, ChatModel):
            options = given({**flags, "on_long": on_long, "raw": raw or None})
            prompts = prompt_rows(file, text_column) if file is not None else None
            prompts = prompts or (_arguments(texts, False) if texts else line_rows(_stdin()))
            _generate(model, prompts, options, numbered=numbered, quiet=quiet)
            return
        assert isinstance(model, TextModel)
        if given(flags) or raw or on_long == "slide":
            raise UsageError(f"the bundle's task is {model.task.kind}: it generates no text")
        pair = model.task.pair
        if texts:
            rows = _arguments(texts, pair)
        elif file is not None:
            rows = file_rows(file, pair=pair, text=text_column, second=pair_column)
        else:
            rows = line_rows(_stdin(), pair=pair)
        _answer(model, rows, all_scores, on_long, numbered=numbered, quiet=quiet)


def _stdin() -> BinaryIO:
    from edgelm.runtime.errors import UsageError

    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] closed, or pythonw
        raise UsageError("there are no texts: stdin is closed", hint="give texts, or --file")
    if sys.stdin.isatty():
        click.echo("waiting for texts, one a line; Ctrl-D (Windows: Ctrl-Z) ends them", err=True)
    # sys.stdin is closed when Python ends, and that aborts while a thread still waits for a line
    try:
        return os.fdopen(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:  # replaced by something without a descriptor
        return sys.stdin.buffer


def _arguments(texts: tuple[str, ...], pair: bool) -> Iterator[Row]:
    from edgelm.runtime.errors import UsageError

    if not pair:
        yield from enumerate(texts, 1)
        return
    if len(texts) % 2:
        raise UsageError("this bundle answers pairs of texts: give them two by two")
    yield from enumerate(zip(texts[::2], texts[1::2], strict=True), 1)


def _generate(
    model: ChatModel,
    prompts: Iterator[tuple[int, Any]],
    options: dict[str, Any],
    *,
    numbered: bool,
    quiet: bool,
) -> None:
    from edgelm.runtime.errors import InputError
    from edgelm.runtime.predictions import to_json
    from edgelm.runtime.progress import Progress
    from edgelm.runtime.streams import chunks

    progress = Progress("quiet" if quiet else "auto")
    done = 0
    with progress.stage("predict"):
        for chunk in chunks(prompts, PROMPTS_AT_ONCE):
            try:
                answers = model.predict([prompt for _, prompt in chunk], **options)
            except InputError as err:
                if err.index is None or not numbered:
                    raise
                row, said = chunk[err.index][0], err.message.partition(": ")[2]
                raise InputError(f"row {row}: {said}", hint=err.hint) from err
            for (row, _), answer in zip(chunk, answers, strict=True):
                line = {"row": row, **to_json(answer)} if numbered else to_json(answer)
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            done += len(chunk)
            progress.advance(done)


def _answer(
    model: TextModel,
    rows: Iterator[Row],
    all_scores: bool,
    on_long: str | None,
    *,
    numbered: bool,
    quiet: bool,
) -> None:
    from edgelm.runtime.errors import InputError
    from edgelm.runtime.predictions import to_json
    from edgelm.runtime.progress import Progress
    from edgelm.runtime.streams import chunks

    progress = Progress("quiet" if quiet else "auto")
    done = 0
    with progress.stage("predict"):
        for chunk in chunks(rows):
            answers = model.predict([t for _, t in chunk], all_scores=all_scores)
            for (row, _), answer in zip(chunk, answers, strict=True):
                if answer.truncated and on_long == "error":
                    raise InputError(
                        f"{'row' if numbered else 'text'} {row} is longer than "
                        f"{model.manifest.text.max_tokens} tokens",
                        hint="shorten it, or use --on-long truncate",
                    )
                line = {"row": row, **to_json(answer)} if numbered else to_json(answer)
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            done += len(chunk)
            progress.advance(done)
