"""The loop from texts to raw outputs: batches within limits, answers in the order of the texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.runtime.engine import BatchLimits, TokenBatch
from edgelm.runtime.errors import TargetUnavailable
from edgelm.runtime.manifest import TextLimits
from edgelm.runtime.runner import Runner, plan_batches
from edgelm.runtime.tokenizer import Tokenizer

PAD = 1


@given(
    st.lists(st.integers(1, 300), max_size=60),
    st.integers(1, 10),
    st.integers(1, 600),
    st.integers(1, 8),
)
def test_batches_cover_each_text_once_longest_first(
    lengths: list[int], max_sequences: int, max_tokens: int, at_least: int
) -> None:
    array = np.array(lengths, np.int32)
    limits = BatchLimits(max_sequences, max_tokens)
    plan = list(plan_batches(array, limits, at_least=at_least))
    share = -(-sum(lengths) // at_least)
    order = [int(i) for batch in plan for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    for batch in plan:
        padded = len(batch) * int(array[batch].max())
        assert 1 <= len(batch) <= max_sequences
        assert padded <= min(max_tokens, share) or len(batch) == 1


class EchoSession:
    """Answers the length, the sum of the real ids and the sum of the type ids of each row."""

    device = "cpu"

    def __init__(self, limits: BatchLimits, parallel: int = 1) -> None:
        self.limits = limits
        self.parallel = parallel
        self.widths: list[int] = []

    def run(self, batch: TokenBatch, *, shared: bool = False) -> NDArray[np.float32]:
        assert shared == (self.parallel > 1)
        T = batch.input_ids.shape[1]
        self.widths.append(T)
        real = np.arange(T) < batch.lengths[:, None]
        assert len(batch.lengths) <= self.limits.max_sequences
        assert (batch.input_ids[~real] == PAD).all()
        assert (batch.type_ids[~real] == 0).all()
        sums = (batch.input_ids * real).sum(axis=1)
        return np.stack([batch.lengths, sums, batch.type_ids.sum(axis=1)], 1).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """tokenizer.json in which w7 is id 7, 0 begins a text and 2 ends one."""
    vocab = {"[CLS]": 0, "[PAD]": PAD, "[SEP]": 2, **{f"w{i}": i for i in range(3, 50)}}
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    for name, type_id in (("A", 0), ("B", 1)):
        template.append({"Sequence": {"id": name, "type_id": type_id}})
        template.append({"SpecialToken": {"id": "[SEP]", "type_id": type_id}})
    special = {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")}
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {"type": "TemplateProcessing", "single": template[:3],
                           "pair": template, "special_tokens": special},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[PAD]"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("parallel", [1, 3])
def test_answers_come_in_the_order_of_the_texts(folder: Path, parallel: int) -> None:
    session = EchoSession(BatchLimits(max_sequences=3, max_tokens=20), parallel)
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(3, 50, rng.integers(0, 8))) for _ in range(30)]
    done: list[int] = []
    outputs = Runner(Tokenizer(folder, TextLimits(16, PAD)), session).run(
        [" ".join(f"w{i}" for i in row) for row in rows], done.append
    )
    assert outputs.values[:, 1].tolist() == [sum(row) + 2 for row in rows]
    assert outputs.n_tokens.tolist() == [len(row) + 2 for row in rows]
    assert outputs.truncated == [False] * 30
    assert sum(done) == 30
    if parallel == 1:
        assert session.widths == sorted(session.widths, reverse=True)


class FailingSession(EchoSession):
    """Fails on the longest texts."""

    def run(self, batch: TokenBatch, *, shared: bool = False) -> NDArray[np.float32]:
        if batch.input_ids.shape[1] >= 8:
            raise TargetUnavailable("out of memory")
        return super().run(batch, shared=shared)


def test_an_error_in_one_of_several_batches_is_raised(folder: Path) -> None:
    session = FailingSession(BatchLimits(max_sequences=1), parallel=2)
    runner = Runner(Tokenizer(folder, TextLimits(16, PAD)), session)
    with pytest.raises(TargetUnavailable, match="out of memory"):
        runner.run(["w3", "w3 w4 w5 w6 w7 w8", "w4"])


def test_long_texts_are_cut_and_told(folder: Path) -> None:
    runner = Runner(Tokenizer(folder, TextLimits(5, PAD)), EchoSession(BatchLimits()))
    outputs = runner.run(["w3 w4 w5", "w3 w4 w5 w6"])
    assert outputs.truncated == [False, True]
    assert outputs.values[:, 1].tolist() == [14, 14]


@pytest.mark.parametrize(("type_ids", "total"), [(True, 3), (False, 0)])
def test_type_ids_tell_the_texts_of_a_pair_apart(folder: Path, type_ids: bool, total: int) -> None:
    runner = Runner(Tokenizer(folder, TextLimits(16, PAD, type_ids)), EchoSession(BatchLimits()))
    outputs = runner.run([("w3", "w4 w5"), ("w3 w4 w5 w6", "w4 w5")])
    assert outputs.values[:, 2].tolist() == [total, total]
