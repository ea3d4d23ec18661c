"""Files that a script of the user's wrote: run, looked through, tried, quantized."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_chat
import tiny_decoders
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf_oracle import changed_headers, hf_logits, llama_logits, outcomes, relative, some_ids
from stand_in import GRANITE, SCRIPT, write_checkout
from transformers import AutoModel, AutoModelForCausalLM

from edgelm.runtime.engine import EngineOptions, TokenBatch
from edgelm.runtime.errors import BundleError, ModelError
from edgelm.runtime.manifest import FileEntry, Task, TextLimits, Variant
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.activations import collect
from edgelm.targets.gguf.check import read_header
from edgelm.targets.gguf.convert import Converted, convert, digest, find_script
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.keys import OTHER_DECODERS
from edgelm.targets.gguf.unpack import unpack
from edgelm.targets.gguf.watch import watched

GENERATE, EMBED = Task("text-generation"), Task("feature-extraction", pooling="mean")
TEXT = TextLimits(64)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("llama.cpp") / "checkout")


@pytest.fixture(scope="module")
def script(checkout):
    found = find_script(checkout)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def granite(tmp_path_factory):
    return tiny_chat.make_chat_model(tmp_path_factory.mktemp("granite") / "model", **GRANITE)


@pytest.fixture(scope="module")
def converted(granite, script, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "model.gguf"
    return convert(script, granite, path, None, GENERATE, TEXT)


def lower(model_dir, folder, script, precision="f32", task=GENERATE):
    folder.mkdir(parents=True)
    return TARGET.lower(LowerRequest(model_dir, task, TEXT, precision, folder, converter=script))


def test_the_script_is_found_in_its_checkout(checkout, tmp_path):
    path = checkout / "convert_hf_to_gguf.py"
    assert find_script(checkout) == find_script(path) == path.resolve()
    assert find_script(tmp_path) is None and find_script(tmp_path / "none.py") is None


def test_what_it_imports_of_its_checkout_is_in_the_digest(checkout, tmp_path):
    copy = shutil.copytree(checkout, tmp_path / "copy")
    assert digest(copy / "convert_hf_to_gguf.py") == digest(checkout / "convert_hf_to_gguf.py")
    found = {digest(copy / "convert_hf_to_gguf.py")}
    for part in ("convert_hf_to_gguf.py", "conversion/granite.py", "gguf-py/gguf/writer.py"):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        (copy / part).write_text("# changed", encoding="utf-8")
        found.add(digest(copy / "convert_hf_to_gguf.py"))
    assert len(found) == 4


def test_an_unknown_architecture_names_the_way_out(granite, tmp_path):
    with pytest.raises(ModelError, match=r"model_type is 'granite'; .* knows llama, ") as err:
        TARGET.lower(LowerRequest(granite, GENERATE, TEXT, "f32", tmp_path))
    assert "--converter PATH" in str(err.value.hint)


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "q8_0"])
def test_logits_equal_hugging_face(precision, granite, script, tmp_path):
    lowered = lower(granite, tmp_path / "out", script, precision)
    assert lowered.files == ("model.gguf",) and lowered.options["decoder"] and not lowered.notes
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.gguf"]
    ids = some_ids(granite, 40)
    difference = relative(llama_logits(tmp_path / "out/model.gguf", ids), hf_logits(granite, ids))
    # llama.cpp rounds the other side of the product too
    assert difference < {"f32": 1e-4, "f16": 0.03}.get(precision, 0.3)
    header = read_header(tmp_path / "out/model.gguf")
    assert header.keys["general.architecture"] == "granite"


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_the_script_is_asked_for_the_models_own_type(stored, script, tmp_path):
    model = tiny_chat.make_chat_model(tmp_path / "model", dtype=stored, **GRANITE)
    made = convert(script, model, tmp_path / "model.gguf", None, GENERATE, TEXT)
    kind = made.header.tensors["token_embd.weight"].type
    assert kind == {"float32": 0, "bfloat16": 30, "float16": 1}[stored]


def test_a_known_architecture_is_converted_as_asked(script, tmp_path):
    model = tiny_decoders.make_decoder(tmp_path / "model", "qwen3")
    lowered = lower(model, tmp_path / "out", script)
    assert lowered.notes == (
        "converted by convert_hf_to_gguf.py, as asked, though edgelm knows 'qwen3' itself",
    )
    ids = some_ids(model, 40)
    ours = llama_logits(tmp_path / "out/model.gguf", ids)
    assert relative(ours, hf_logits(model, ids)) < 1e-4


def camembert(folder: Path) -> Path:
    tiny.make_model(folder, "roberta", labels=None)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "camembert", "architectures": ["CamembertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batch_of(rows) -> TokenBatch:
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return TokenBatch(ids, lengths, np.zeros_like(ids))


def test_an_encoder(script, tmp_path):
    model_dir = camembert(tmp_path / "model")
    lowered = lower(model_dir, tmp_path / "out", script, task=EMBED)
    assert lowered.options == {"max_tokens": 64, "pooling": "mean"}
    files = (FileEntry("model.gguf", "0" * 64, 1),)
    variant = Variant("v", "gguf", "f32", files, lowered.options)
    session = TARGET.open(tmp_path / "out", variant, EMBED, EngineOptions("cpu", 1))
    row = [0, 7, 9, 20, 11, 2]
    ours = session.run(batch_of([row]))[0]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(model_dir)(torch.tensor([row])).last_hidden_state
    # llama.cpp looks GELU up in a table of float16 values
    np.testing.assert_allclose(ours, theirs[0].mean(0).numpy(), atol=2e-3)
    task = Task("text-classification", ("a", "b"))
    with pytest.raises(ModelError, match="has no classification head"):
        lower(model_dir, tmp_path / "head", script, task=task)
    with pytest.raises(ModelError, match="is an encoder, which is not for text-generation"):
        lower(model_dir, tmp_path / "other", script)


def test_a_decoder_that_gives_vectors(script, tmp_path):
    """From the bare model, as embeddings are compiled from."""
    model = tiny_chat.make_chat_model(tmp_path / "chat", **GRANITE)
    AutoModel.from_pretrained(model).save_pretrained(tmp_path / "model")
    for path in model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    task = Task("feature-extraction", pooling="last")
    lowered = lower(tmp_path / "model", tmp_path / "out", script, task=task)
    assert lowered.options == {"max_tokens": 64, "pooling": "last"}
    files = (FileEntry("model.gguf", "0" * 64, 1),)
    variant = Variant("v", "gguf", "f32", files, lowered.options)
    session = TARGET.open(tmp_path / "out", variant, task, EngineOptions("cpu", 1))
    row = [7, 9, 20, 11, 2]
    ours = session.run(batch_of([row]))[0]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "model")(torch.tensor([row]))
    np.testing.assert_allclose(ours, theirs.last_hidden_state[0, -1].numpy(), atol=0.01)
    cls = Task("feature-extraction", pooling="cls")
    with pytest.raises(ModelError, match="first token sees nothing but itself"):
        lower(tmp_path / "model", tmp_path / "cls", script, task=cls)


@pytest.mark.parametrize(
    ("body", "says", "hint"),
    [
        ("import sys; print('one'); sys.exit('no such graph')", "one\n.*no such graph", "newer"),
        ("import no_such_package", "No module named 'no_such_package'", "requirements.txt"),
        ("print('done')", "the end of what it said:\n.*done", "newer"),
        ("import sys; open(sys.argv[3], 'w').write('text')", "does not begin with GGUF", "onnx"),
        ("import socket, os; assert os.environ['HF_HUB_OFFLINE'] == '1'; os.abort()",
         "ended with code -6", "onnx"),
    ],
)  # fmt: skip
def test_what_the_script_cannot_do(body, says, hint, granite, tmp_path):
    script = write_checkout(tmp_path / "checkout", body) / "convert_hf_to_gguf.py"
    with pytest.raises(ModelError, match=f"(?s){says}") as err:
        lower(granite, tmp_path / "out", script)
    assert hint in str(err.value.hint)


def test_what_llama_cpp_does_not_run(granite, tmp_path):
    body = SCRIPT + "raw = args.outfile.read_bytes()\n"
    body += "args.outfile.write_bytes(raw.replace(b'blk.1.ffn_up', b'blk.1.ffn_uq'))\n"
    script = write_checkout(tmp_path / "checkout", body) / "convert_hf_to_gguf.py"
    with pytest.raises(ModelError, match=r"llama\.cpp does not run .*ffn_up.* not found"):
        lower(granite, tmp_path / "out", script)


def test_models_that_bring_code_are_refused(granite, script, tmp_path):
    model = shutil.copytree(granite, tmp_path / "model")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": []}}))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: `auto_map`"):
        lower(model, tmp_path / "out", script)


def test_more_tokens_than_the_model_has_positions_for(granite, script, tmp_path):
    request = LowerRequest(granite, GENERATE, TextLimits(512), "f32", tmp_path, converter=script)
    with pytest.raises(ModelError, match="max_tokens is 512, the model's positions end at 256"):
        TARGET.lower(request)


def test_llama_cpp_tells_what_matrices_meet(tmp_path):
    """As the Hugging Face model does, of a family that edgelm can plan: both can be asked."""
    model_dir = tiny_decoders.make_decoder(tmp_path / "model", "qwen2")
    TARGET.lower(LowerRequest(model_dir, GENERATE, TEXT, "f32", tmp_path))
    path = tmp_path / "model.gguf"
    header = read_header(path)
    made = Converted(path, header, read_facts(header, path), {"decoder": True, "max_tokens": 64})
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 400, n).tolist() for n in (50, 7, 19)]
    batches = [batch_of(rows[:2]), batch_of(rows[2:])]
    found = watched(made, GENERATE, TEXT, 1, batches)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    expected = collect(model, model_dir, GENERATE, TEXT, batches)
    assert found.counts == expected.counts and found.n_chunks == expected.n_chunks
    for name, sums in expected.sums.items():  # keys and values are kept as float16
        np.testing.assert_allclose(found.sums[name], sums, rtol=0.01, err_msg=name)
    with pytest.raises(ModelError, match="at least one text"):
        watched(made, GENERATE, TEXT, 1, [])


KINDS = {int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, bool: GGUFValueType.BOOL}


def rewritten(path: Path, target: Path, name: str | None = None, **keys) -> Path:
    """The file with another graph's name, or other values of the graph's keys; None drops one."""
    reader = GGUFReader(path)
    graph = reader.fields["general.architecture"].contents()
    name, changed = name or graph, {k.replace("__", "."): v for k, v in keys.items()}
    writer = GGUFWriter(target, name)
    for key, field in reader.fields.items():
        own = key.removeprefix(f"{graph}.")
        if key.startswith("GGUF.") or key == "general.architecture" or own in changed:
            continue
        kind, *more = field.types
        full = key if own == key else f"{name}.{own}"
        writer.add_key_value(full, field.contents(), kind, sub_type=more[0] if more else None)
    for key, value in changed.items():
        if isinstance(value, list):
            writer.add_array(f"{name}.{key}", value)
        elif value is not None:
            writer.add_key_value(f"{name}.{key}", value, KINDS[type(value)])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("mamba", {}, "the graph 'mamba', known are"),
        ("smallthinker", {}, "the graph 'smallthinker'"),  # ends the process without experts
        (None, {"nextn_predict_layers": 1}, "the keys nextn_predict_layers are not known"),
        (None, {"ssm__inner_size": 8}, r"the keys ssm\.inner_size"),
        (None, {"expert_count": 4}, "0 of 4 experts"),
        (None, {"expert_count": 2, "expert_used_count": 3}, "3 of 2 experts"),
        (None, {"attention__head_count_kv": [2, 2]}, "head_count_kv is Array"),
        (None, {"attention__head_count": None}, "head_count is None"),
        (None, {"attention__scale": float("nan")}, "scale is nan"),
        (None, {"attention__causal": False}, "has keys of an encoder"),
        (None, {"classifier.pooling_type": 1}, "has keys of an encoder"),
        (None, {"rope__dimension_count": 4}, "the graph turns all 8 values"),
        (None, {"block_count": 0}, "block_count is 0"),
    ],
)
def test_graphs_of_others_are_held_to_rules(name, keys, says, converted, tmp_path):
    path = rewritten(converted.path, tmp_path / "model.gguf", name, **keys)
    with pytest.raises(BundleError, match=says):
        read_facts(read_header(path), path)


def test_no_changed_header_of_theirs_ends_the_process(converted, tmp_path):
    assert set(outcomes(changed_headers(converted.path, tmp_path))) == {"opened", "refused"}
    names = sorted(OTHER_DECODERS)
    paths = [rewritten(converted.path, tmp_path / f"{name}.gguf", name) for name in names]
    found = dict(zip(names, outcomes(paths), strict=True))
    assert found["granite"] == "opened" and list(found.values()).count("refused") > 30


def test_their_files_are_not_unpacked(converted, tmp_path):
    with pytest.raises(ModelError, match="its graph is 'granite'; files of llama, "):
        unpack(converted.path, tmp_path, lambda done, total: None)
