"""A plain peft + Trainer script, as its users write it: fp32, random order, dynamic padding.

The same LoRA as edgelm's: every linear layer of the encoder, pooler and head trained in full.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from protocol import Options, options, say, versions
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

LINEAR = r"bert\.encoder\..*\.(query|key|value|dense)"


def read_rows(path: str) -> list[tuple[str, str]]:
    """Texts and labels."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def train(given: Options) -> dict[str, Any]:
    """One epoch; the clock runs from the tokenizing of the texts to the last step."""
    set_seed(0)
    rows = read_rows(given["train"])
    labels = sorted({label for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForSequenceClassification.from_pretrained(
        given["model"], num_labels=len(labels), dtype="float32"
    )
    lora = LoraConfig(
        r=given["rank"],
        lora_alpha=given["alpha"],
        lora_dropout=given["dropout"],
        target_modules=LINEAR,
        modules_to_save=["classifier", "bert.pooler"],
        task_type="SEQ_CLS",
    )
    model = get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        encoded = tokenizer(
            [text for text, _ in rows], truncation=True, max_length=given["max_tokens"]
        )
        data = [
            {**{name: encoded[name][i] for name in encoded}, "labels": labels.index(label)}
            for i, (_, label) in enumerate(rows)
        ]
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=given["batch_size"],
            learning_rate=given["learning_rate"],
            use_cpu=True,
            logging_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=data,  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        seconds = time.monotonic() - started
    loss = next((e["loss"] for e in trainer.state.log_history if "loss" in e), None)
    return {
        "seconds": seconds,
        "precision": "fp32",
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "loss": loss,
        "n_texts": len(rows),
    }


def main() -> None:
    given = options()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(given["threads"])
    train({**given, "train": given["warm_up"]})
    say(versions=versions("torch", "transformers", "peft"))
    for _ in sys.stdin:
        say(**train(given))


if __name__ == "__main__":
    main()
