"""Decoders on ONNX Runtime against the Hugging Face model on the same token ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tiny
import torch
from onnx import TensorProto, helper
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgelm.runtime.engine import Chunk, DecoderOptions
from edgelm.runtime.errors import BundleError, InputError, ModelError, TargetUnavailable, UsageError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest
from edgelm.targets.onnx import decoder, genai
from edgelm.targets.onnx.blockwise import quantize_blocks
from edgelm.targets.onnx.engine import ORT_ERRORS

V = 400
CONTEXT = 64
SIZES = dict(
    vocab_size=V,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
)
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
}


def make_model(folder: Path, family: str) -> Path:
    """Weights are drawn wide, so that answers depend on every token."""
    torch.manual_seed(0)
    model = MODELS[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1 if parameter.ndim == 1 else 0, 0.2)
    model.save_pretrained(folder)
    tokenizer = tiny.make_tokenizer("roberta")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def lower(model_dir: Path, folder: Path, precision: str):
    folder.mkdir(parents=True)
    task, text = Task("text-generation", end_ids=(2,)), TextLimits(max_tokens=CONTEXT)
    return get_target("onnx").lower(LowerRequest(model_dir, task, text, precision, folder))


def open_(folder: Path, max_tokens=CONTEXT, **options):
    found = sorted(folder.glob("model.onnx*"))
    files = tuple(FileEntry(p.name, "0" * 64, p.stat().st_size) for p in found)
    variant = Variant("onnx", "onnx", "any", files)
    options = DecoderOptions(**{"threads": 1} | options)
    return get_target("onnx").open_decoder(folder, variant, TextLimits(max_tokens), options)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """`lowered(family, precision)` -> (the Hugging Face folder, the ONNX folder), made once.

    All precisions of a family share the seconds that its build takes."""
    root, made, real_build = tmp_path_factory.mktemp("decoders"), {}, genai.build

    def build_once(model_dir: Path, folder: Path) -> None:
        kept = model_dir.with_suffix(".built")
        if not kept.exists():
            real_build(model_dir, kept)
        shutil.copytree(kept, folder)

    def get(family="llama", precision="fp32"):
        if family not in made:
            made[family] = make_model(root / family, family)
        folder = root / f"{family}-{precision}"
        if not folder.exists():
            files = lower(made[family], folder, precision).files
            assert sorted(files) == sorted(p.name for p in folder.iterdir())
        return made[family], folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genai, "build", build_once)
        yield get


def ids_of(n: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, V, n).astype(np.int32)


def reference(model_dir: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (n, V) of the Hugging Face model."""
    family = json.loads((model_dir / "config.json").read_text())["model_type"]
    model = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[family].from_pretrained(
        model_dir, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model(torch.tensor(ids[None]).long()).logits[0].numpy()


def fresh(folder: Path, ids: np.ndarray) -> np.ndarray:
    return open_(folder).extend([Chunk(0, ids, len(ids))]).copy()


@pytest.mark.parametrize("family", MODELS)
def test_logits_equal_the_reference_however_the_tokens_are_split(lowered, family, monkeypatch):
    model_dir, folder = lowered(family)
    ids = ids_of(40)
    expected = reference(model_dir, ids)
    assert expected.std() > 1
    session = open_(folder)
    assert (session.n_vocab, session.context_tokens, session.device) == (V, CONTEXT, "cpu")
    for sizes in ([40], [1] * 40, [7, 1, 20, 12], [39, 1]):
        session.truncate(0, 0)
        parts = np.split(ids, np.cumsum(sizes)[:-1])
        found = [session.extend([Chunk(0, part, len(part))]).copy() for part in parts]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-3, rtol=1e-4)
        assert session.length(0) == 40
    monkeypatch.setattr(decoder, "TOKENS_A_CALL", 7)
    for n_logits in (0, 1, 5, 7, 8, 30, 40):
        session.truncate(0, 0)
        found = session.extend([Chunk(0, ids, n_logits)])
        assert found.shape == (n_logits, V) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected[40 - n_logits :], atol=1e-3, rtol=1e-4)


def test_sequences_in_one_call_are_as_they_are_alone(lowered):
    _, folder = lowered()
    rows = [ids_of(n, seed) for seed, n in enumerate((5, 17, 1, 30, 9))]
    alone = [fresh(folder, row) for row in rows]
    session = open_(folder, n_slots=5)

    def check(chunks):
        """Chunks as (slot, tokens, n_logits), each appended to what the slot holds."""
        made, expected = [], []
        for slot, n, n_logits in chunks:
            end = session.length(slot) + n
            made.append(Chunk(slot, rows[slot][end - n : end], n_logits))
            expected.append(alone[slot][end - n_logits : end])
        found = session.extend(made)
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-3, rtol=1e-4)

    check([(4, 3, 1), (0, 4, 2), (2, 1, 0), (3, 20, 20), (1, 1, 1)])
    check([(3, 1, 1), (1, 1, 1), (4, 1, 0), (0, 1, 1)])  # single tokens, slot 2 in a gap
    check([(1, 1, 1), (3, 1, 1)])
    check([(4, 1, 1), (1, 14, 3), (3, 2, 1)])
    assert [session.length(slot) for slot in range(5)] == [5, 17, 1, 24, 5]
    check([(3, 6, 6), (4, 4, 4)])


def test_a_gap_that_is_full_is_left_alone(lowered):
    _, folder = lowered()
    row = ids_of(CONTEXT)
    session = open_(folder, n_slots=3)
    whole = session.extend([Chunk(1, row, CONTEXT)]).copy()
    session.extend([Chunk(0, row[:9]), Chunk(2, row[:8])])
    found = session.extend([Chunk(0, row[9:10]), Chunk(2, row[8:9])])
    np.testing.assert_allclose(found, whole[[9, 8]], atol=1e-3, rtol=1e-4)
    session.truncate(1, CONTEXT - 1)
    last = session.extend([Chunk(1, row[-1:])])
    np.testing.assert_allclose(last, whole[-1:], atol=1e-3, rtol=1e-4)


def test_truncated_and_copied_sequences_go_on_as_fresh_ones(lowered):
    _, folder = lowered()
    first, second = ids_of(20, 1), ids_of(12, 2)
    session = open_(folder, n_slots=3)
    session.extend([Chunk(0, first), Chunk(2, second)])
    session.truncate(0, 11)
    expected = fresh(folder, np.concatenate([first[:11], second]))[11:]
    found = session.extend([Chunk(0, second, 12)])
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)
    session.copy(0, 2, 8)
    assert (session.length(0), session.length(2)) == (23, 8)
    expected = fresh(folder, np.concatenate([first[:8], second]))[8:]
    found = session.extend([Chunk(2, second, 12)])
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)


def test_what_cannot_be_appended_changes_nothing(lowered):
    _, folder = lowered()
    session = open_(folder, n_slots=2, context_tokens=16)
    ids = ids_of(10)
    before = session.extend([Chunk(0, ids)]).copy()
    good = Chunk(1, ids)
    for bad, error, message in (
        (Chunk(0, ids[:7]), InputError, "17 tokens are more than the context of 16"),
        (Chunk(0, np.array([V], np.int32)), InputError, f"token id {V} is not in 0 to {V - 1}"),
        (Chunk(0, np.array([-1], np.int32)), InputError, "token id -1"),
        (Chunk(0, ids[:2], 3), UsageError, "n_logits: 3 of 2"),
        (Chunk(0, ids[:0], 0), UsageError, "of 0 tokens"),
        (Chunk(2, ids), UsageError, "slot 2 is not in 0 to 1"),
        (Chunk(1, ids), UsageError, "slot 1 stands in two chunks"),
    ):
        with pytest.raises(error, match=message):
            session.extend([good, bad])
        assert (session.length(0), session.length(1)) == (10, 0)
    for call in (lambda: session.truncate(0, 11), lambda: session.copy(0, 1, 11)):
        with pytest.raises(UsageError, match="slot 0 holds 10 tokens, not 11"):
            call()
    session.truncate(0, 9)
    np.testing.assert_allclose(session.extend([Chunk(0, ids[9:])]), before, atol=1e-3, rtol=1e-4)
    session.extend([Chunk(0, ids[:6])])  # exactly full
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.extend([good])
    with pytest.raises(UsageError, match="context_tokens: 129 is more than the 128"):
        open_(folder, context_tokens=129)
    with pytest.raises(TargetUnavailable, match="CPUs only"):
        open_(folder, device="cuda")


def test_a_folder_that_edgelm_did_not_write_is_a_bundle_error(lowered, tmp_path):
    _, good = lowered()
    config = json.loads((good / "genai_config.json").read_text())

    def with_config(change, message):
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        data = json.loads(json.dumps(config))
        change(data)
        (folder / "genai_config.json").write_text(json.dumps(data))
        with pytest.raises(BundleError, match=message):
            open_(folder)

    def decoder_of(data):
        return data["model"]["decoder"]

    with_config(lambda c: c.pop("model"), "no mapping 'model'")
    with_config(lambda c: decoder_of(c).update(head_size=True), "head_size: True")
    with_config(lambda c: decoder_of(c).update(num_hidden_layers=10**9), "num_hidden_layers")
    with_config(lambda c: decoder_of(c).update(num_hidden_layers=3), "not a file that edgelm wrote")
    with_config(lambda c: decoder_of(c).update(num_key_value_heads=4), "with .2. heads")
    with_config(lambda c: decoder_of(c).update(filename="../model.onnx"), "decoder.filename")
    with_config(lambda c: decoder_of(c)["inputs"].update(past_key_names="%d%d"), "decoder.inputs")
    with_config(lambda c: c["model"].update(vocab_size=V + 1), "its logits are not")

    folder = tmp_path / "folder"
    (folder / "model.onnx").write_bytes((good / "model.onnx").read_bytes()[:1000])
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="not a usable ONNX file"):
        open_(folder)
    shutil.copy(good / "model.onnx", folder)
    (folder / "genai_config.json").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        open_(folder)


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("model.onnx*"))


def test_blocks_are_rounded_to_the_nearest_and_scales_searched():
    weight = torch.randn(64, 80, generator=torch.Generator().manual_seed(0)) ** 3
    weight[3] = 0

    def restored(bits: int) -> torch.Tensor:
        q, scale = quantize_blocks(weight, bits)
        assert q.shape == (64, 3, 4 * bits) and q.dtype == torch.uint8 and scale.shape == (64, 3)
        if bits == 4:
            q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
        values = (q.float() - 2 ** (bits - 1)) * scale[..., None]
        assert (values.flatten(1)[:, 80:] == 0).all()
        return values.flatten(1)[:, :80]

    blocks = torch.nn.functional.pad(weight, (0, 16)).reshape(64, 3, 32)
    step = blocks.abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)[:, :80]
    # half a step; a whole one at the end of the range that has no code for the largest value
    assert ((restored(8) - weight).abs() <= step / 128 + 1e-6).all()
    plain = torch.round(weight / (step / 7).clamp(min=1e-9)) * step / 7
    error, usual = ((x - weight).square() * weight.square() for x in (restored(4), plain))
    assert error.sum() < 0.8 * usual.sum()


@pytest.mark.parametrize(
    ("precision", "share", "near"),
    [("fp16", 0.65, 1e-5), ("bf16", 0.65, 1e-3), ("int8", 0.5, 1e-2), ("int4", 0.4, 0.35)],
)
def test_fewer_bits_are_smaller_and_near(lowered, precision, share, near):
    model_dir, exact = lowered()
    _, folder = lowered(precision=precision)
    assert size(folder) < share * size(exact)
    ids = ids_of(CONTEXT)
    expected = torch.tensor(reference(model_dir, ids)).log_softmax(-1)
    found = torch.tensor(fresh(folder, ids)).log_softmax(-1)
    assert 0 < (expected.exp() * (expected - found)).sum(-1).mean() < near


def test_onnxruntime_genai_runs_the_folder_and_answers_alike(lowered):
    og = pytest.importorskip("onnxruntime_genai")
    prompt, n = ids_of(10, 3), 20
    for precision in ("fp32", "int4"):
        _, folder = lowered(precision=precision)
        model = og.Model(str(folder))
        search = og.GeneratorParams(model)
        search.set_search_options(max_length=len(prompt) + n, min_length=len(prompt) + n)
        generator = og.Generator(model, search)
        generator.append_tokens(prompt.tolist())
        while not generator.is_done():
            generator.generate_next_token()
        session, token = open_(folder), prompt
        answer = prompt.tolist()
        while len(answer) < len(prompt) + n:
            logits = session.extend([Chunk(0, token)])[0]
            logits[2] = -np.inf  # min_length: the end is not taken
            token = np.array([logits.argmax()], np.int32)
            answer.append(int(token[0]))
        assert generator.get_sequence(0).tolist() == answer
        config = json.loads((folder / "genai_config.json").read_text())
        assert config["search"]["max_length"] == CONTEXT
        assert og.Tokenizer(model).encode("i lost my card").size


def test_what_the_builder_cannot_build_is_a_model_error(tmp_path, capfd):
    model_dir = tiny.make_model(tmp_path / "hf", "bert", labels=("a", "b"))
    with pytest.raises(ModelError, match=r"cannot build it: .*not currently supported"):
        lower(model_dir, tmp_path / "onnx", "fp32")
    with pytest.raises(ModelError, match="no precision 'int8-static' for text-generation"):
        lower(model_dir, tmp_path / "other", "int8-static")
    assert capfd.readouterr().out == ""


def runs_attention(size: int, turned: int) -> bool:
    """Whether ONNX Runtime runs its GroupQueryAttention on heads of that size."""
    H, K, T, C = 4, 2, 5, 16
    names = ["q", "k", "v", "past_key", "past_value", "last", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        [*names, "cos", "sin"] if turned else names,
        ["out", "key", "value"],
        domain="com.microsoft",
        num_heads=H,
        kv_num_heads=K,
        do_rotary=int(turned > 0),
    )
    feed = {
        "q": np.ones((1, T, H * size), np.float32),
        "k": np.ones((1, T, K * size), np.float32),
        "v": np.ones((1, T, K * size), np.float32),
        "past_key": np.ones((1, K, 0, size), np.float32),
        "past_value": np.ones((1, K, 0, size), np.float32),
        "last": np.array([T - 1], np.int32),
        "total": np.array(T, np.int32),
    }
    if turned:
        feed |= dict.fromkeys(("cos", "sin"), np.ones((C, turned // 2), np.float32))
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in feed.items()]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("out", "key", "value")
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    try:
        session.run(["out"], feed)
    except ORT_ERRORS:
        return False
    return True


def test_the_rule_of_heads_is_onnx_runtimes():
    ort.set_default_logger_severity(4)
    sizes = [*range(2, 42, 2), 48, 56, 64, 72, 80]
    cases = [(size, turned) for size in sizes for turned in range(0, size + 1, 4)]
    assert [c for c in cases if (genai.why_not_heads(*c) is None) != runs_attention(*c)] == []


@pytest.mark.parametrize(
    ("family", "traits", "says"),
    [
        ("llama", {"head_dim": 8}, "heads of 8 values, no multiple of 16"),
        ("nemotron", {"partial_rotary_factor": 0.5}, "the first 8 values turn with the position"),
    ],
)
def test_heads_that_onnx_runtime_does_not_run(family, traits, says, tmp_path):
    config = AutoConfig.for_model(family, **SIZES | traits)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer("roberta").save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=says) as err:
        lower(tmp_path / "model", tmp_path / "onnx", "fp32")
    assert "gguf" in str(err.value.hint)


def test_what_a_run_raises_is_typed(lowered, monkeypatch):
    """ONNX Runtime tells of it with a RuntimeError, where inputs are bound."""
    _, folder = lowered()
    session = open_(folder)
    session._shape = replace(session._shape, n_kv_heads=3)  # buffers that do not fit the graph
    session._hold(session._session, 1, CONTEXT)
    with pytest.raises(TargetUnavailable, match="ONNX Runtime failed: "):
        session.extend([Chunk(0, ids_of(3), 1)])
    with pytest.raises(TargetUnavailable, match="ONNX Runtime failed: "):
        session.append(0, 5)


def test_generation_has_no_gpu(lowered, monkeypatch):
    """Where ONNX Runtime has one, encoders alone are offered it."""
    from edgelm.runtime.load import unavailable
    from edgelm.targets.onnx import providers

    monkeypatch.setattr(providers, "missing_devices", lambda: {"tensorrt": "of this test"})
    able = get_target("onnx").capabilities()
    assert able.devices == able.devices_for("text-classification") == ("cpu", "cuda")
    assert able.devices_for("text-generation") == ("cpu",)
    assert unavailable("onnx", "feature-extraction", "cuda") is None
    assert unavailable("onnx", "text-generation", "auto") is None
    assert unavailable("onnx", "text-generation", "cuda") == "no cuda device for text-generation"
