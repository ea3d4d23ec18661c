"""Training: seconds of an epoch, edgelm's finetune pass against a plain peft + Trainer script."""

from __future__ import annotations

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _lib.compiled import MODEL
from _lib.data import Data, read_rows, write_subset
from _lib.machine import n_cores
from _lib.results import at_most, report
from _lib.rounds import Spread, Worker, ratios
from edgelm.compiler.passes.intake import find_model
from edgelm.compiler.recipe import Recipe
from edgelm.compiler.training import default_max_tokens, settled, settled_lora

EDGELM, EDGELM_FP32, PLAIN = "edgelm finetune", "edgelm finetune, fp32", "plain peft + Trainer"
MAX_RATIO = 0.6
WARM_UP, EVAL = 64, 154


def section(state: Path, data: Data, *, n_texts: int, rounds: int) -> str:
    """One epoch of each on the same texts, in turns."""
    options = _options(state, data, n_texts)
    with ExitStack() as stack:

        def start(name: str, script: str, precision: str) -> Worker:
            sys.stderr.write(f"loading {name}\n")
            given = {**options, "precision": precision}
            threads = options["threads"]
            return stack.enter_context(Worker(name, script, given, threads=threads))

        workers = [
            start(EDGELM, "edgelm_training.py", "auto"),
            start(EDGELM_FP32, "edgelm_training.py", "fp32"),
            start(PLAIN, "plain_training.py", "fp32"),
        ]
        answers: dict[str, list[dict[str, Any]]] = {w.name: [] for w in workers}
        for i in range(rounds):
            for worker in workers:
                answers[worker.name].append(worker.ask())
            shown = ", ".join(f"{name} {a[-1]['seconds']:.1f} s" for name, a in answers.items())
            sys.stderr.write(f"round {i + 1}/{rounds}: {shown}\n")
    return _render(answers, options, rounds)


def _options(state: Path, data: Data, n_texts: int) -> dict[str, Any]:
    folder = state / "training"
    n_all = len(read_rows(data.train))
    train = data.train
    if n_texts < n_all:
        train = write_subset(data.train, folder / "train.csv", n_texts)
    recipe = Recipe(model=MODEL)
    # evaluation data keeps edgelm from holding texts out; with early_stop 0 nothing is evaluated
    labels = {label for _, label in read_rows(train)}
    held_out = folder / "eval.csv"
    write_subset(data.test, held_out, EVAL)
    _keep_labels(held_out, labels)
    return {
        "model": str(find_model(recipe)),
        "train": str(train),
        "eval": str(held_out),
        "warm_up": str(_warm_up(train, folder / "warm-up.csv", labels)),
        "batch_size": settled(recipe).batch_size,
        "learning_rate": 2e-3,
        "rank": recipe.lora.rank,
        "alpha": recipe.lora.alpha or recipe.lora.rank,
        "dropout": settled_lora(recipe).dropout,
        "max_tokens": default_max_tokens(recipe),
        "threads": n_cores(),
    }


def _warm_up(train: Path, target: Path, labels: set[str]) -> Path:
    """A few steps; every label stands in it, so that the evaluation data stays valid."""
    return write_subset(train, target, max(WARM_UP, 2 * len(labels)))


def _keep_labels(path: Path, labels: set[str]) -> None:
    rows = [row for row in read_rows(path) if row[1] in labels]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])


def _render(answers: dict[str, list[dict[str, Any]]], options: dict[str, Any], rounds: int) -> str:
    seconds = {name: [float(a["seconds"]) for a in found] for name, found in answers.items()}
    plain = seconds[PLAIN]
    rows: list[list[str]] = []
    for name, found in answers.items():
        last = found[-1]
        share = "1" if name == PLAIN else ratios(seconds[name], plain).show()
        loss = "-" if last["loss"] is None else f"{float(last['loss']):.4f}"
        rows.append(
            [
                name,
                last["precision"],
                Spread.of(seconds[name]).show(1),
                share,
                f"{last['trained_parameters']:,}",
                loss,
            ]
        )
    head = ["program", "precision", "s an epoch", "share of plain", "trained parameters", "loss"]
    gain = ratios(seconds[EDGELM], plain)
    goal = at_most("edgelm's seconds, as a share of plain's", MAX_RATIO, gain, "x")
    said = [
        f"One epoch of LoRA (rank {options['rank']}, every linear layer of the encoder, pooler "
        f"and head in full) on {answers[PLAIN][-1]['n_texts']:,} training texts, batch "
        f"{options['batch_size']}, {options['threads']} threads, {rounds} rounds in turns, "
        "each program in a process of its own, warmed up on a few steps; from the tokenizing "
        "of the texts to the last step.",
        "",
        "- edgelm: its finetune pass with an empty cache, seconds from its history.json "
        "(batches grouped by length; bf16 where the processor has it; the checkpoint of the "
        "epoch is in the time)",
        "- plain: fp32, random order, each batch padded to its longest text "
        "(DataCollatorWithPadding), no checkpoint",
    ]
    return report(said, head, rows, [goal])
