"""edgelm's own rounding into GGUF's types: codes, error feedback, costs, files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_decoders
import torch
from transformers import AutoModelForCausalLM

from edgelm.compiler.allocate.probes import token_losses
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import LowerRequest
from edgelm.targets.curvature import Curvature, Term, write_curvature
from edgelm.targets.feedback import factor
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.curvature import collect_curvature
from edgelm.targets.gguf.lower import tabulate
from edgelm.targets.gguf.precisions import TENSOR_TYPES
from edgelm.targets.gguf.rounding.codes import KNOWN, put_codes, read_grid
from edgelm.targets.gguf.rounding.feedback import round_matrix
from edgelm.targets.gguf.rounding.file import kind_of, read_floats, size_with, write_with
from edgelm.targets.gguf.rounding.matrices import Rounder
from edgelm.targets.gguf.rounding.table import KINDS, fitting
from edgelm.targets.gguf.rounding.types import (
    block_size,
    dequantize_rows,
    quantize_rows,
)

GENERATE = Task("text-generation")
TEXT = TextLimits(64)


def correlated(n: int, C: int, seed: int = 0) -> torch.Tensor:
    """Vectors (n, C) whose values hang together, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(C, C, generator=generator) * torch.logspace(0, -2, C)
    return torch.randn(n, C, generator=generator) @ mix


@pytest.mark.parametrize("kind", KNOWN)
def test_codes_stand_for_what_the_reader_of_gguf_reads(kind: str) -> None:
    rng = np.random.default_rng(1)
    B = block_size(kind)
    blocks = quantize_rows(rng.standard_normal((16, B)).astype(np.float32), kind, np.ones(B))
    grid = read_grid(blocks, kind)
    codes = rng.integers(0, len(grid.levels) - (kind == "q8_0"), (16, B))
    made = put_codes(blocks, kind, codes)
    expected = grid.bottom + grid.levels[codes] * grid.step
    read = gguf.dequantize(made, gguf.GGMLQuantizationType(TENSOR_TYPES[kind]))
    np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read, dequantize_rows(made, kind, B))


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_loses_less_than_llama_cpp_rounding_alone(kind: str) -> None:
    C = 512
    x = correlated(2000, C)
    H = x.T @ x / len(x)
    weight = torch.randn(24, C, generator=torch.Generator().manual_seed(2))
    importance = H.diagonal().contiguous()
    plain = dequantize_rows(quantize_rows(weight.numpy(), kind, importance.numpy()), kind, C)
    data, values = round_matrix(weight, kind, factor(H), importance)
    np.testing.assert_array_equal(values.numpy(), dequantize_rows(data, kind, C))
    term = Term(H, torch.ones(24))
    loss, before = term.cost(values - weight), term.cost(torch.from_numpy(plain) - weight)
    assert loss < (0.95 if kind in KNOWN else 1.0) * before
    expected = 0.5 * ((values - weight) @ x.T).square().sum().item() / len(x)
    assert loss == pytest.approx(expected, rel=1e-3)  # the cost is what the products lose


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounding") / "llama"
    tiny_decoders.make_decoder(folder, "llama", intermediate_size=256, num_hidden_layers=2)
    return folder


@pytest.fixture(scope="module")
def samples() -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(3)
    return [(rng.integers(0, 400, 40).tolist(), list(range(1, 40))) for _ in range(40)]


@pytest.fixture(scope="module")
def curvature(decoder: Path, samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    found = collect_curvature(model, decoder, GENERATE, TEXT, token_losses(model, samples, 0))
    path = tmp_path_factory.mktemp("curvature") / "curvature.safetensors"
    write_curvature(path, found)
    return path


def request(decoder: Path, folder: Path, precision: str, **more) -> LowerRequest:
    folder.mkdir(exist_ok=True)
    return LowerRequest(decoder, GENERATE, TEXT, precision, folder, **more)


def test_costs_tell_what_types_do_to_the_answers(
    decoder: Path, samples, curvature: Path, tmp_path: Path
) -> None:
    """The table's costs beside the divergence measured with one matrix changed at a time."""
    TARGET.lower(request(decoder, tmp_path / "float", "f32"))
    source = tmp_path / "float" / "model.gguf"
    header = read_header(source)
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    ids = torch.tensor([ids for ids, _ in samples])
    names = {
        "blk.0.attn_v.weight": model.model.layers[0].self_attn.v_proj,
        "blk.1.attn_output.weight": model.model.layers[1].self_attn.o_proj,
        "blk.0.ffn_up.weight": model.model.layers[0].mlp.up_proj,
        "blk.1.ffn_down.weight": model.model.layers[1].mlp.down_proj,
        "blk.1.ffn_gate.weight": model.model.layers[1].mlp.gate_proj,
    }
    expected: list[float] = []
    measured: list[float] = []
    with torch.inference_mode():
        reference = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        for name, module in names.items():
            values = read_floats(source, header.tensors[name])
            rounder = Rounder(values, Curvature(curvature).terms(name))
            for kind in ("q2_k", "q4_k") if values.shape[1] == 256 else ("mxfp4", "q5_0"):
                expected.append(rounder.cost(kind))
                before = module.weight.clone()
                rounded = dequantize_rows(rounder.bytes(kind), kind, values.shape[1])
                module.weight.copy_(torch.from_numpy(rounded))
                now = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
                measured.append((reference.exp() * (reference - now)).sum(-1).mean().item())
                module.weight.copy_(before)
    order = [np.argsort(np.argsort(values)) for values in (expected, measured)]
    assert np.corrcoef(*order)[0, 1] > 0.9
    ratio = np.array(expected) / np.array(measured)
    assert (ratio > 0.3).all() and (ratio < 3).all()


def test_the_file_has_the_size_foretold_and_types_asked_for(
    decoder: Path, curvature: Path, tmp_path: Path
) -> None:
    table = tabulate(request(decoder, tmp_path / "table", "auto", curvature=curvature))
    assert not (tmp_path / "table" / "unquantized.gguf").exists()
    kinds = {row.name: row.options[i % 6].kind for i, row in enumerate(table.rows)}
    size = table.rest_bytes + sum(
        option.n_bytes for row in table.rows for option in row.options
        if option.kind == kinds[row.name]
    )  # fmt: skip
    made = request(decoder, tmp_path / "auto", "auto", curvature=curvature, types=kinds)
    lowered = TARGET.lower(made)
    path = tmp_path / "auto" / "model.gguf"
    assert path.stat().st_size == size
    assert lowered.types == kinds
    reader = gguf.GGUFReader(path)
    names = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    assert {name: names[name] for name in kinds} == kinds


def test_a_table_that_was_cut_off_goes_on(decoder: Path, curvature: Path, tmp_path: Path) -> None:
    whole = tabulate(request(decoder, tmp_path / "table", "auto", curvature=curvature))
    rows = tmp_path / "table" / "rows.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = tmp_path / "cut"
    cut.mkdir()
    # the first row is a mark of its own: it is kept, not made anew
    first = lines[0].replace(f'"n_weights": {whole.rows[0].n_weights}', '"n_weights": 7')
    (cut / "rows.jsonl").write_text(first + lines[1] + lines[2][:20], encoding="utf-8")
    again = tabulate(request(decoder, cut, "auto", curvature=curvature))
    assert again.rows[0].n_weights == 7
    assert again.rows[1:] == whole.rows[1:]


def test_other_types_leave_the_rest_of_the_file_alone(decoder: Path, tmp_path: Path) -> None:
    TARGET.lower(request(decoder, tmp_path / "float", "f16"))
    source, target = tmp_path / "float" / "model.gguf", tmp_path / "typed.gguf"
    header = read_header(source)
    kinds = {name: "q8_0" for name in header.tensors if name.endswith("ffn_up.weight")}
    write_with(source, target, kinds, lambda _, values, kind: quantize_rows(values, kind))
    assert target.stat().st_size == size_with(header, kinds)
    typed = read_header(target)
    assert {n: kind_of(t) for n, t in typed.tensors.items() if n in kinds} == kinds
    assert typed.keys | {"general.file_type": 1} == header.keys
    for name in header.tensors.keys() - kinds.keys():
        before, after = header.tensors[name], typed.tensors[name]
        if kind_of(before) in ("f16", "f32"):
            np.testing.assert_array_equal(read_floats(source, before), read_floats(target, after))


def test_narrow_matrices_get_types_of_small_blocks() -> None:
    assert fitting(576) == ("mxfp4", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")
    assert "q4_k" in fitting(768) and "q4_1" not in fitting(768)
    assert fitting(100) == ()
