"""The teacher's answers on disk: equal to asking it, not asked twice, and met by Trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import CORPUS, make_model

from edgelm.compiler.distil import losses
from edgelm.compiler.distil import teacher as kept
from edgelm.compiler.distil.teacher import Array, Teacher, record
from edgelm.compiler.distil.trainer import Taught, trainer_class
from edgelm.runtime.errors import StorageError

ARRAYS = [Array("logits", "float32", (3,), per_row=True), Array("states", "float16", (2,))]
PLACES = [2, 1, 4, 3, 2, 0, 1]
BATCHES = [[2, 3], [0, 4], [6, 1, 5]]


class Asked:
    """Answers made of the row and place, and which rows were asked."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.rows: list[int] = []
        self.fails_at = fails_at

    def __call__(self, rows: Any) -> dict[str, np.ndarray]:
        if self.fails_at in rows:
            raise KeyboardInterrupt
        self.rows += rows
        return {
            "logits": np.array([[i, i + 0.5, -i] for i in rows]),
            "states": np.array([[i, t] for i in rows for t in range(PLACES[i])]).reshape(-1, 2),
        }


def assert_whole(teacher: Teacher) -> None:
    said = teacher.rows([4, 5, 2])
    assert said["logits"].tolist() == [[4, 4.5, -4], [5, 5.5, -5], [2, 2.5, -2]]
    assert said["states"].tolist() == [[4, 0], [4, 1], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert len(teacher) == 7


def test_rows_come_back_in_any_order_and_are_asked_once(tmp_path: Path):
    asked = Asked()
    assert_whole(record(tmp_path / "t", ARRAYS, PLACES, BATCHES, asked))
    assert sorted(asked.rows) == list(range(7))
    again = Asked()
    assert_whole(record(tmp_path / "t", ARRAYS, PLACES, BATCHES, again))
    assert_whole(Teacher(tmp_path / "t"))
    assert again.rows == []
    record(tmp_path / "t", ARRAYS, PLACES, BATCHES[::-1], again)  # another order is another file
    assert len(again.rows) == 7
    assert_whole(Teacher(tmp_path / "t"))


@pytest.mark.parametrize("name", ["states", "logits"])
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(kept, "SAVED_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, ARRAYS, PLACES, BATCHES, Asked(fails_at=6))
    with pytest.raises(StorageError, match="2 of 3 batches"):
        Teacher(tmp_path)
    array = tmp_path / f"{name}.bin"
    known = array.read_bytes()
    array.write_bytes(known + b"half a batch")
    rest = Asked()
    assert_whole(record(tmp_path, ARRAYS, PLACES, BATCHES, rest))
    assert rest.rows == BATCHES[2]
    index = json.loads((tmp_path / "teacher.json").read_text())
    (tmp_path / "teacher.json").write_text(json.dumps(index | {"done": 2}))
    array.write_bytes(known[:-1])  # the index reached the disk, the last answers did not
    again = Asked()
    assert_whole(record(tmp_path, ARRAYS, PLACES, BATCHES, again))
    assert again.rows == [i for batch in BATCHES for i in batch]


def test_trainer_takes_the_teachers_answers(tmp_path: Path):
    """What each batch brings is what the teacher answers when it is asked directly, and a student
    that learns from that alone comes nearer to it."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        TrainingArguments,
    )

    folder = make_model(tmp_path / "model")
    auto = AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto.from_pretrained(folder).eval()
    encoded = [tokenizer(text) for text in CORPUS]
    texts = [{**e, "labels": i % 3} for i, e in enumerate(encoded)]

    def answer(rows: Any) -> dict[str, np.ndarray]:
        batch = tokenizer.pad([encoded[i] for i in rows], return_tensors="pt")
        with torch.inference_mode():
            return {"logits": model(**batch).logits.numpy()}

    numbers = list(range(len(texts)))
    batches = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
    teacher = record(tmp_path / "t", ARRAYS[:1], [1] * len(texts), batches, answer)
    student = auto.from_pretrained(make_model(tmp_path / "student", seed=1))
    everything = tokenizer.pad(encoded, return_tensors="pt")
    said = torch.from_numpy(teacher.rows(numbers)["logits"])

    def distance() -> float:
        with torch.inference_mode():
            logits = student.eval()(**everything).logits
        return float(losses.soft_labels(logits, said, 1.0))

    before = distance()
    n_taught = 0

    def loss(student: Any, inputs: dict[str, Any], said: dict[str, Any]) -> tuple[Any, Any]:
        outputs = student(**inputs)
        nonlocal n_taught
        if not said:
            return outputs.loss, outputs
        n_taught += 1
        value = losses.soft_labels(outputs.logits, said["logits"], 1.0)
        direct = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        assert torch.allclose(direct, said["logits"], atol=1e-5)
        return value, outputs

    trainer = trainer_class(loss)(
        model=student,
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), num_train_epochs=5, learning_rate=1e-3,
            per_device_train_batch_size=8, report_to=[], disable_tqdm=True, save_strategy="no",
            remove_unused_columns=False, label_names=["labels"], use_cpu=True, seed=0,
        ),
        train_dataset=[{**row, "row": i} for i, row in enumerate(texts)],
        eval_dataset=texts[:8],
        data_collator=Taught(DataCollatorWithPadding(tokenizer), teacher),
    )  # fmt: skip
    with torch.no_grad():
        batch = tokenizer.pad(texts[:8], return_tensors="pt")
        labelled = auto.from_pretrained(tmp_path / "student")(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(labelled), rel=1e-4)
    trainer.train()
    assert n_taught == 5 * len(batches)
    assert distance() < 0.5 * before
