"""The importance matrix, and all types that llama.cpp's quantizer makes with it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import tiny_decoders
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from edgelm.runtime.engine import Chunk, DecoderOptions, TokenBatch
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest, Quantization
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.activations import collect, pieces
from edgelm.targets.gguf.check import BLOCKS, read_header
from edgelm.targets.gguf.facts import bits_per_weight
from edgelm.targets.gguf.imatrix import CHUNK_TOKENS, Imatrix, read_imatrix, write_imatrix
from edgelm.targets.gguf.precisions import (
    QUANTIZED_FILE_TYPES,
    TENSOR_TYPES,
    TENSORS_IN_NEED,
    gains_by_matrix,
    needs_matrix,
)

GENERATE = Task("text-generation")
TEXT = TextLimits(64)
WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
NUMBERS = {kind: name for name, kind in TENSOR_TYPES.items()}


def batch_of(rows) -> TokenBatch:
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return TokenBatch(ids, lengths, np.zeros_like(ids))


def some_rows(n_vocab, lengths=(30, 7, 19), seed=3):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_vocab, n).tolist() for n in lengths]


def collected(model_dir: Path, rows, task=GENERATE, text=TEXT) -> Imatrix:
    auto = AutoModelForCausalLM if task is GENERATE else AutoModel
    model = auto.from_pretrained(model_dir, dtype=torch.float32).eval()
    return collect(model, model_dir, task, text, [batch_of(rows[:2]), batch_of(rows[2:])])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """(a decoder 256 wide, its importance matrix's file)."""
    folder = tiny_decoders.make_decoder(tmp_path_factory.mktemp("wide"), "llama", **WIDE)
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    write_imatrix(path, collected(folder, some_rows(500)), "rows of a test")
    return folder, path


def lower(model_dir, folder, precision, imatrix=None, **tensor_types):
    folder.mkdir(parents=True, exist_ok=True)
    how = Quantization(tensor_types=tensor_types)
    request = LowerRequest(
        model_dir, GENERATE, TEXT, precision, folder, quantization=how, imatrix=imatrix
    )
    lowered = TARGET.lower(request)
    assert [p.name for p in folder.iterdir()] == list(lowered.files)
    return lowered


def types_of(path: Path) -> dict[str, str]:
    return {name: NUMBERS[t.type] for name, t in read_header(path).tensors.items()}


def logits_of(folder: Path, lowered, precision, ids, max_tokens=64) -> np.ndarray:
    files = tuple(FileEntry(f, "0" * 64, 1) for f in lowered.files)
    variant = Variant("v", "gguf", precision, files, lowered.options, lowered.engine)
    text = TextLimits(max_tokens)
    session = TARGET.open_decoder(folder, variant, text, DecoderOptions("cpu", 1))
    try:
        return session.extend([Chunk(0, np.array(ids, np.int32), len(ids))]).copy()
    finally:
        session.close()


def test_sums_of_a_decoder_are_the_same_whatever_it_is_for(tmp_path):
    folder = tiny_decoders.make_decoder(tmp_path, "qwen3")
    rows = some_rows(400)
    answers = collected(folder, rows).sums
    vectors = collected(folder, rows, Task("feature-extraction", pooling="last")).sums
    assert answers.keys() == vectors.keys()
    for name, sums in answers.items():
        np.testing.assert_allclose(sums, vectors[name], rtol=1e-5)


def test_decoder_sums_equal_numpy(tmp_path):
    """Inputs of matrices, from hidden states and weights."""
    folder = tiny_decoders.make_decoder(tmp_path / "m", "qwen3")
    rows = some_rows(400)
    found = collected(folder, rows)
    assert found.n_chunks == 3 and set(found.counts.values()) == {sum(map(len, rows))}
    assert len(found.sums) == 4 * 7  # layers, matrices: not the table, which is the output too
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    eps = model.config.rms_norm_eps

    def normed(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * state[f"model.{name}.weight"]

    expected: dict[str, np.ndarray] = {}

    def add(name, x):
        expected[name] = expected.get(name, 0) + (x.astype(np.float64) ** 2).sum(0)

    for row in rows:
        with torch.no_grad():
            out = model(torch.tensor([row]), output_hidden_states=True)
        states = [h[0].numpy() for h in out.hidden_states]
        for i in range(4):
            add(f"blk.{i}.attn_q.weight", normed(states[i], f"layers.{i}.input_layernorm"))
        # attention by hand would be a model of its own: values of one token attend to themselves
        x = normed(states[0][:1], "layers.0.input_layernorm")
        v = x @ state["model.layers.0.self_attn.v_proj.weight"].T
        add("first tokens", np.repeat(v.reshape(1, -1, 32), 2, axis=1).reshape(1, -1))
        after = states[0][:1] + np.repeat(v.reshape(1, -1, 32), 2, axis=1).reshape(1, -1) @ (
            state["model.layers.0.self_attn.o_proj.weight"].T
        )
        y = normed(after, "layers.0.post_attention_layernorm")
        gate = y @ state["model.layers.0.mlp.gate_proj.weight"].T
        up = y @ state["model.layers.0.mlp.up_proj.weight"].T
        add("down of first tokens", gate / (1 + np.exp(-gate)) * up)
    for i in range(4):
        for part in ("q", "k", "v"):
            got = found.sums[f"blk.{i}.attn_{part}.weight"]
            np.testing.assert_allclose(got, expected[f"blk.{i}.attn_q.weight"], rtol=1e-4)
    alone = collected(folder, [row[:1] for row in rows])
    got = alone.sums["blk.0.attn_output.weight"]
    np.testing.assert_allclose(got, expected["first tokens"], rtol=1e-4)
    got = alone.sums["blk.0.ffn_down.weight"]
    np.testing.assert_allclose(got, expected["down of first tokens"], rtol=1e-3)


@pytest.mark.parametrize("name", tiny_decoders.FAMILIES)
def test_every_decoder_family_is_covered(name, tmp_path):
    folder = tiny_decoders.make_decoder(tmp_path / "m", name)
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, collected(folder, some_rows(200)), "")
    lowered = lower(folder, tmp_path / "out", "iq4_nl", path)
    assert np.isfinite(logits_of(tmp_path / "out", lowered, "iq4_nl", [1, 2, 3])).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_encoders_and_their_padding(family, tmp_path):
    folder = tiny.make_model(tmp_path / "m", family, labels=None)
    task = Task("feature-extraction", pooling="mean")
    rows = some_rows(40, (20, 5, 9))
    together = collected(folder, rows, task)
    alone = [collected(folder, [row] * 3, task) for row in rows]  # no padding
    for name, sums in together.sums.items():
        expected = sum(a.sums[name] for a in alone) / 3
        np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-5)
    assert set(together.counts.values()) == {34}


def test_a_file_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    made = Imatrix(
        {f"blk.{i}.ffn_up.weight": rng.random(8, np.float32) for i in range(12)},
        {f"blk.{i}.ffn_up.weight": 20 + i for i in range(12)},
        7,
    )
    write_imatrix(tmp_path / "i.gguf", made, "texts")
    read = read_imatrix(tmp_path / "i.gguf")
    assert read.counts == made.counts and read.n_chunks == 7
    for name, sums in made.sums.items():
        assert (read.sums[name] == sums).all()
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["texts"]
    assert reader.get_field("general.architecture") is None


def test_no_column_weighs_nothing():
    sums = {"a": np.array([0, 4, 0, 8], np.float32), "b": np.zeros(2, np.float32)}
    means = Imatrix(sums, {"a": 2, "b": 5}).means()
    assert means["a"][1] == 2 and means["a"][3] == 4 and 0 < means["a"][0] < 1e-5
    assert (means["b"] == 1).all()


def test_broken_matrices_are_refused(wide, tmp_path):
    folder, path = wide
    good = read_imatrix(path)
    (tmp_path / "text").write_text("no matrix")
    with pytest.raises(ModelError, match="not an importance matrix"):
        lower(folder, tmp_path / "a", "q4_k_m", tmp_path / "text")
    first = next(iter(good.sums))
    for sums, says in (
        ({k: v for k, v in good.sums.items() if k != first}, "it has nothing for blk"),
        (good.sums | {first: np.ones(32, np.float32)}, "it has 32 columns for blk"),
        (good.sums | {first: good.sums[first] * np.nan}, "no sums of squares"),
    ):
        write_imatrix(tmp_path / "bad.gguf", Imatrix(sums, good.counts), "")
        with pytest.raises(ModelError, match=says):
            lower(folder, tmp_path / "b", "q4_k_m", tmp_path / "bad.gguf")
        assert not list((tmp_path / "b").iterdir())
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with pytest.raises(ModelError, match="at least one text"):
        collect(model, folder, GENERATE, TEXT, [])


@pytest.mark.parametrize("precision", QUANTIZED_FILE_TYPES)
def test_every_precision_of_a_wide_decoder(precision, wide, tmp_path):
    folder, path = wide
    lowered = lower(folder, tmp_path / "with", precision, path)
    ids = some_rows(500, (40,), seed=9)[0]
    assert np.isfinite(logits_of(tmp_path / "with", lowered, precision, ids)).all()
    header = read_header(tmp_path / "with/model.gguf")
    assert header.keys["general.file_type"] == QUANTIZED_FILE_TYPES[precision]
    assert 1 < bits_per_weight(header) < 9
    if needs_matrix(precision):
        with pytest.raises(ModelError, match=f"{precision} cannot be made without"):
            lower(folder, tmp_path / "without", precision)
    else:
        lower(folder, tmp_path / "without", precision)
        one, two = (tmp_path / p / "model.gguf" for p in ("with", "without"))
        ignores = precision in ("q8_0", "tq1_0", "tq2_0", "q1_0", "q2_0")
        assert (one.read_bytes() == two.read_bytes()) == ignores


def test_the_tables_are_llama_cpps():
    """All of its file types are there but those that it makes no dense model in; block sizes."""
    from edgelm.targets.gguf import bindings

    library = bindings.load()
    stated = {
        name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower(): value
        for name, value in vars(library).items()
        if name.startswith("LLAMA_FTYPE_MOSTLY_")
    }
    known = {**QUANTIZED_FILE_TYPES, "f16": 1, "bf16": 32}
    assert {k: v for k, v in stated.items() if k in known} == {
        k: v for k, v in known.items() if k in stated
    }
    gone = {"q4_0_4_4", "q4_0_4_8", "q4_0_8_8", "q4_1_some_f16", "q4_2", "q4_3"}
    assert set(stated) - set(known) - gone <= {"mxfp4_moe", "nvfp4"}
    assert set(TENSOR_TYPES.values()) == set(BLOCKS)
    for kind in gguf.GGMLQuantizationType:
        if kind in BLOCKS and kind.name != "Q1_0":
            assert BLOCKS[kind] == gguf.GGML_QUANT_SIZES[kind], kind
        assert kind.value not in NUMBERS or NUMBERS[kind.value] == kind.name.lower()
    assert needs_matrix("iq1_s") and needs_matrix("q8_0", ["iq2_xs"]) and not needs_matrix("f16")
    assert [p for p in QUANTIZED_FILE_TYPES if not gains_by_matrix(p)] == ["q8_0", "q6_k"]
    assert not gains_by_matrix("f32", ["iq2_xs"])


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_single_tensors_get_their_type(kind, wide, tmp_path):
    folder, path = wide
    lower(folder, tmp_path / "usual", "q4_k_m", path)
    lowered = lower(folder, tmp_path / "out", "q4_k_m", path, **{r"blk\.1\.ffn_(up|down)": kind})
    got = types_of(tmp_path / "out/model.gguf")
    before = types_of(tmp_path / "usual/model.gguf")
    changed = {"blk.1.ffn_up.weight", "blk.1.ffn_down.weight"}
    assert {got[name] for name in changed} == {kind}
    assert all(got[name] == before[name] for name in got if name not in changed)
    assert np.isfinite(logits_of(tmp_path / "out", lowered, "q4_k_m", [1, 2, 3])).all()


def test_patterns_of_tensors(wide, tmp_path):
    folder, path = wide
    types = {"ffn_down": "q6_k", "ffn": "q5_0", "token_embd": "q8_0"}
    lower(folder, tmp_path / "a", "q4_0", **types)
    got = types_of(tmp_path / "a/model.gguf")
    assert got["blk.0.ffn_down.weight"] == "q6_k"  # the first pattern decides
    assert got["blk.0.ffn_up.weight"] == "q5_0" and got["token_embd.weight"] == "q8_0"
    assert got["blk.0.ffn_norm.weight"] == "f32"  # not a matrix
    with pytest.raises(ModelError, match="'ffm_down' is in no name of the model's matrices") as err:
        lower(folder, tmp_path / "b", "q4_0", ffm_down="q6_k")
    assert "ffn_down.weight" in err.value.hint
    for kind in sorted(TENSORS_IN_NEED):  # on some of these llama.cpp would end the process
        with pytest.raises(ModelError, match=r"token_embd\.weight cannot be of type"):
            lower(folder, tmp_path / "c", "q4_0", path, token_embd=kind)
        with pytest.raises(ModelError, match="cannot be made without an importance matrix"):
            lower(folder, tmp_path / "d", "q4_0", ffn=kind)


def test_pieces_of_long_texts():
    ids = list(range(1, 2 * CHUNK_TOKENS + 20))
    assert list(pieces(ids[:5], 0)) == [[1, 2, 3, 4, 5]]
    one, two, three = pieces(ids, 1)
    assert one == ids[:CHUNK_TOKENS] and two == [1, *ids[CHUNK_TOKENS + 1 : 2 * CHUNK_TOKENS]]
    assert three == [1, *ids[2 * CHUNK_TOKENS + 1 :]]
    assert len(list(pieces(ids[:-10], 1))) == 2  # a few tokens are left out
    assert [p[0] for p in pieces(ids, None)] == [1, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 1]


def test_more_of_what_matters_is_kept(tmp_path):
    """Columns that texts use little may be wrong: the error that texts see becomes smaller."""
    folder = tiny_decoders.make_decoder(tmp_path / "m", "llama", **WIDE)
    found = collected(folder, some_rows(500))
    rng = np.random.default_rng(1)
    sums = {
        name: np.exp(rng.normal(0, 2, len(v))).astype(np.float32) for name, v in found.sums.items()
    }
    write_imatrix(tmp_path / "i.gguf", Imatrix(sums, found.counts), "")
    errors = {}
    weights = load_file(folder / "model.safetensors")
    for label, path in (("with", tmp_path / "i.gguf"), ("without", None)):
        lower(folder, tmp_path / label, "q4_k_s", path)
        reader = gguf.GGUFReader(tmp_path / label / "model.gguf")
        tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_gate.weight")
        got = gguf.dequantize(tensor.data, tensor.tensor_type)
        wrong = (got - weights["model.layers.1.mlp.gate_proj.weight"]) ** 2
        errors[label] = float((wrong * sums["blk.1.ffn_gate.weight"]).sum())
    assert errors["with"] < 0.8 * errors["without"]


def test_a_config_that_names_no_family(tmp_path):
    folder = tiny_decoders.make_decoder(tmp_path / "m", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="model_type is 'gpt2'"):
        collect(model, folder, GENERATE, TEXT, [batch_of([[1, 2]])])


TINY_LM = Path(__file__).parents[3] / "shared/data/tiny_lm"


@pytest.mark.slow
@pytest.mark.skipif(not TINY_LM.is_dir(), reason="needs the data beside the checkout")
def test_real_models_lose_less_with_it(tmp_path):
    """Mean KL divergence from the f32 file on text that the matrix has not seen."""
    text = (TINY_LM / "eval.txt").read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(TINY_LM)(text)["input_ids"]
    seen, held_out = ids[:20_480], np.array(ids[-5_120:], np.int32).reshape(-1, 256)
    model = AutoModelForCausalLM.from_pretrained(TINY_LM, dtype=torch.float32).eval()
    batches = (batch_of([piece]) for piece in pieces(seen, None))
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, collect(model, TINY_LM, GENERATE, TextLimits(512), batches), "seen")

    def log_probs(precision, imatrix):
        folder = tmp_path / f"{precision}-{imatrix is not None}"
        # which llama.cpp gives more bits in the first layers where there is no matrix
        same = {"ffn_down": "iq4_nl"} if precision == "iq4_nl" else {}
        lowered = lower(TINY_LM, folder, precision, imatrix, **same)
        rows = [logits_of(folder, lowered, precision, row, 256) for row in held_out]
        return torch.from_numpy(np.stack(rows)).log_softmax(-1)

    exact = log_probs("f32", None)
    losses: dict[str, tuple[float, float]] = {}
    for precision in ("iq4_nl", "q4_k_m", "q3_k_m", "q2_k"):
        one, two = (
            (exact.exp() * (exact - log_probs(precision, imatrix))).sum(-1).mean().item()
            for imatrix in (path, None)
        )
        losses[precision] = (one, two)
    assert all(one < 0.99 * two for one, two in losses.values()), losses
