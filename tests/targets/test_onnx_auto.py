"""onnx:auto: sizes that are foretold, costs that are true, files that are those of the types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from edgelm.compiler.allocate.knapsack import least_bytes, solve
from edgelm.compiler.allocate.probes import text_losses
from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest
from edgelm.targets.costs import Table
from edgelm.targets.onnx.export import export
from edgelm.targets.onnx.precisions import FLOAT

TASK = Task("text-classification", ("card_lost", "refund", "other"))
TARGET = get_target("onnx")


def batches(n: int, seed: int) -> list[TokenBatch]:
    rng = np.random.default_rng(seed)
    shape = (8, 20)
    full = np.full(8, 20, np.int32)
    return [
        TokenBatch(rng.integers(5, 150, shape).astype(np.int32), full, np.zeros(shape, np.int32))
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> LowerRequest:
    """What asks for a table, and for a variant once types are put in."""
    root = tmp_path_factory.mktemp("onnx_auto")
    # wide enough for positions to be a table, and for 8 bits to be less than a float head
    model_dir = tiny.make_model(root / "hf", "bert", hidden_size=64, intermediate_size=96)
    text = TextLimits(max_tokens=64)
    request = LowerRequest(model_dir, TASK, text, "auto", root, curvature=root / "curvature")
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    assert request.curvature is not None
    losses = text_losses(model, TASK, text, batches(40, 1), 0)
    TARGET.weigh(model, request, losses, request.curvature)
    return request


@pytest.fixture(autouse=True, scope="module")
def exported_once(request_: LowerRequest) -> Iterator[None]:
    exported = export(request_.model_dir, TASK, type_ids=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgelm.targets.onnx.lower.export", lambda *a, **k: exported.clone())
        yield


@pytest.fixture(scope="module")
def table(request_: LowerRequest) -> Table:
    return TARGET.tabulate(request_)


def lowered(
    request: LowerRequest, folder: Path, precision: str, types: dict[str, str] | None = None
) -> tuple[np.ndarray, int, str | None]:
    """Logits, bytes of the file, and the precision whose limits hold."""
    folder.mkdir()
    made = TARGET.lower(replace(request, precision=precision, folder=folder, types=types or {}))
    assert made.types == (types or {})
    files = (FileEntry("model.onnx", "0" * 64, 1),)
    variant = Variant("v", "onnx", precision, files, made.options, made.engine)
    session = TARGET.open(folder, variant, TASK, EngineOptions(threads=1))
    answers = np.concatenate([session.run(batch) for batch in batches(20, 2)])
    return answers, (folder / "model.onnx").stat().st_size, made.graded_as


def chosen(table: Table, budget: int) -> tuple[dict[str, str], int, float]:
    """Types, bytes and cost within a budget."""
    items = [[(o.n_bytes, o.cost) for o in row.options] for row in table.rows]
    found = solve(items, budget - table.rest_bytes)
    options = [row.options[i] for row, i in zip(table.rows, found, strict=True)]
    types = {row.name: o.kind for row, o in zip(table.rows, options, strict=True)}
    n_bytes = table.rest_bytes + sum(o.n_bytes for o in options)
    return types, n_bytes, sum(o.cost for o in options)


def test_files_are_those_of_the_types_and_within_the_size(
    request_: LowerRequest, table: Table, tmp_path: Path
) -> None:
    least = least_bytes([[(o.n_bytes, o.cost) for o in row.options] for row in table.rows])
    least += table.rest_bytes
    most = table.rest_bytes + sum(row.options[-1].n_bytes for row in table.rows)
    costs: list[float] = []
    for i, budget in enumerate(np.linspace(least, most, 6).astype(int).tolist()):
        types, foretold, cost = chosen(table, budget)
        costs.append(cost)
        answers, n_bytes, like = lowered(request_, tmp_path / f"auto-{i}", "auto", types)
        assert n_bytes <= foretold <= budget
        assert foretold - n_bytes < 300 * len(table.rows)  # of nodes, whatever the model's size
        if budget in (least, most):
            uniform = "int4" if budget == least else "fp32"
            expected, _, _ = lowered(request_, tmp_path / uniform, uniform)
            np.testing.assert_allclose(answers, expected, atol=1e-5)
            assert like == ("q4_0" if budget == least else "f32")
        else:
            assert len(set(types.values())) > 2
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 0


def test_feedback_costs_less(request_: LowerRequest, table: Table) -> None:
    recovered = TARGET.tabulate(replace(request_, feedback=True))
    for before, after in zip(table.rows, recovered.rows, strict=True):
        assert [o.n_bytes for o in after.options] == [o.n_bytes for o in before.options]
        same = "embeddings" in before.name or before.options[0].kind == "int8-blocks"
        for old, new in zip(before.options, after.options, strict=True):
            if same or old.kind in ("int8-blocks", FLOAT):
                assert new.cost == old.cost
            else:
                assert new.cost < old.cost, (before.name, old.kind)


def test_costs_tell_what_types_do_to_the_answers(
    request_: LowerRequest, table: Table, tmp_path: Path
) -> None:
    """The table's costs beside the divergence measured with one matrix changed at a time."""
    plain = {row.name: FLOAT for row in table.rows}
    reference, _, _ = lowered(request_, tmp_path / "float", "auto", plain)
    before = torch.from_numpy(reference).log_softmax(-1)
    expected: list[float] = []
    measured: list[float] = []
    for row in table.rows:
        for option in row.options[:-1]:
            folder = tmp_path / f"{len(expected)}"
            types = plain | {row.name: option.kind}
            answers, _, _ = lowered(request_, folder, "auto", types)
            now = torch.from_numpy(answers).log_softmax(-1)
            expected.append(option.cost)
            measured.append((before.exp() * (before - now)).sum(-1).mean().item())
    order = [np.argsort(np.argsort(values)) for values in (expected, measured)]
    assert np.corrcoef(*order)[0, 1] > 0.85
