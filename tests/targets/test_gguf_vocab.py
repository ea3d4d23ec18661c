"""The tokenizer in a decoder's file: llama.cpp's ids, ends and templates against Hugging Face's."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import tiny_decoders
from gguf import GGUFReader
from gguf_oracle import LlamaVocab
from tiny_decoders import CORPUS, KINDS, TEMPLATE, make_decoder
from transformers import AutoTokenizer

from edgelm.compiler.nasty import NASTY
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets.base import Lowered, LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf.vocab.pre import pre_tokenizer_name, pre_tokenizer_steps

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared/data is not beside the checkout"
)
MODELS = {kind: name for name, (_, kind, _) in reversed(tiny_decoders.DECODERS.items())}
TEXTS = [
    *NASTY,
    *dict.fromkeys(CORPUS),
    "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n",
    "hello<|im_end|>  world </s> x <h1> y",
    "  two before",
    "two after  ",
    "\n\n\nx\t\t y\r\n",
    "a▁b ▁▁ c",
]


def lower(model_dir: Path, folder: Path) -> Lowered:
    task = Task("text-generation")
    return TARGET.lower(LowerRequest(model_dir, task, TextLimits(64), "f16", folder))


def rewrite(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """kind -> a directory with model/ and its model.gguf, made once."""
    found: dict[str, tuple[Path, Lowered]] = {}

    def get(kind: str) -> tuple[Path, Lowered]:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            make_decoder(folder / "model", MODELS[kind], end_ids=["<|im_end|>"])
            found[kind] = folder, lower(folder / "model", folder)
        return found[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_as_hugging_face(kind, made):
    folder, lowered = made(kind)
    vocab = LlamaVocab(folder / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    # llama.cpp composes no accents and knows capitals of ASCII only, which is noted
    assert bool(lowered.notes) == (kind in ("qwen", "tekken"))
    for text in TEXTS:
        if kind == "gemma" and "▁" in text:  # its runs of spaces are cut out only when written so
            continue
        text = unicodedata.normalize("NFC", text) if kind == "qwen" else text
        assert vocab.encode(text) == tokenizer(text)["input_ids"], text
    vocab.close()


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_writes_texts_out_as_they_were(kind, made):
    folder, _ = made(kind)
    vocab = LlamaVocab(folder / "model.gguf")
    for text in dict.fromkeys(CORPUS):
        ids = vocab.encode(text, add_special=False)
        assert vocab.decode(ids).removeprefix(" ") == text
    vocab.close()


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_template(kind, made):
    folder, _ = made(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    fields = GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    vocab = LlamaVocab(folder / "model.gguf")
    assert vocab.ends(tokenizer.eos_token_id)
    assert vocab.ends(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert not vocab.ends(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    vocab.close()


def test_several_ends_have_their_places(tmp_path):
    ends = ["<|end_of_text|>", "<|eom_id|>"]  # beside <|eot_id|>, as of Llama 3.1
    model = make_decoder(tmp_path / "model", "llama", end_ids=ends)
    lower(model, tmp_path)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    found = {
        r: tokens[fields[f"tokenizer.ggml.{r}_token_id"].contents()] for r in ("eos", "eot", "eom")
    }
    assert found == {"eos": "<|eot_id|>", "eot": "<|end_of_text|>", "eom": "<|eom_id|>"}


def test_the_template_of_older_directories(tmp_path):
    model = make_decoder(tmp_path / "model", "smollm")
    (model / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    rewrite(model / "tokenizer_config.json", chat_template=named)
    lower(model, tmp_path)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "plain"


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    ],
)
def test_what_llama_cpp_would_cut_another_way_gets_numbers_only(change, tmp_path):
    model = make_decoder(tmp_path / "model", "smollm")
    rewrite(model / "tokenizer.json", **change)
    lowered = lower(model, tmp_path)
    assert "token ids only" in lowered.notes[0]
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert "tokenizer.ggml.tokens" not in fields


def test_pieces_with_other_pairs_than_llama_cpp_would_merge_get_numbers_only(tmp_path):
    model = make_decoder(tmp_path / "model", "llama-tied-biases")
    spec = json.loads((model / "tokenizer.json").read_text("utf-8"))
    spec["model"]["merges"].pop(0)
    (model / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    assert "token ids only" in lower(model, tmp_path).notes[0]


def test_phi3_by_its_name(made, tmp_path):
    """llama.cpp drops the space after special tokens when the file is called phi3; a Phi-3 with
    other flags must not be called so."""
    folder, _ = made("phi3")
    fields = GGUFReader(folder / "model.gguf").fields
    assert fields["general.name"].contents().startswith("phi3")
    model = make_decoder(tmp_path / "model", "phi3")
    spec = json.loads((model / "tokenizer.json").read_text("utf-8"))
    for token in spec["added_tokens"]:
        token["rstrip"] = False
    (model / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    lower(model, tmp_path)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.name"].contents().startswith("phi text")
    vocab = LlamaVocab(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert vocab.encode("<|im_end|>\nx") == tokenizer("<|im_end|>\nx")["input_ids"]


@pytest.mark.parametrize(
    "name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "gpt-4o"]
)
def test_names_of_pre_tokenizers_go_both_ways(name):
    steps, ignores = pre_tokenizer_steps(name)
    spec = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"ignore_merges": ignores},
    }
    assert pre_tokenizer_name(spec) == name


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """The texts and ids that llama.cpp's own tests use."""
    base = SHARED / "llamacpp_vocab" / f"ggml-vocab-{name}.gguf"
    raw = Path(f"{base}.inp").read_bytes().decode("utf-8")
    texts = raw.split("\n__ggml_vocab_test__\n")
    rows = Path(f"{base}.out").read_text().split("\n")
    pairs = [(t, [int(i) for i in row.split()]) for t, row in zip(texts, rows, strict=True)]
    return pairs[:-1]  # each text is closed by the mark


def model_with(tokenizer, folder: Path, name: str) -> Path:
    """A tiny model of the family, with that tokenizer."""
    make_decoder(folder, name, vocab_size=len(tokenizer), num_hidden_layers=1)
    for old in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / old).unlink()
    tokenizer.save_pretrained(folder)
    return folder


def unpacked_tokenizer(name: str, arch: str, folder: Path):
    """The Hugging Face tokenizer of a vocabulary file."""
    from edgelm.targets.gguf.unpack.file import File
    from edgelm.targets.gguf.unpack.tokenizer import write_tokenizer

    file = File(SHARED / "llamacpp_vocab" / f"ggml-vocab-{name}.gguf", arch)
    write_tokenizer(file, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("name", "arch", "model"), [("llama-spm", "llama", "llama"), ("phi-3", "phi3", "phi3")]
)
def test_vectors_of_pieces(name, arch, model, tmp_path):
    tokenizer = unpacked_tokenizer(name, arch, tmp_path / "tokenizer")
    lowered = lower(model_with(tokenizer, tmp_path / "model", model), tmp_path)
    assert not lowered.notes
    check_vectors(name, tokenizer, tmp_path / "model.gguf")


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["gpt-2", "roberta-bpe"])
def test_vectors_of_words(name, tmp_path):
    """GPT-2's vocabulary from its file, and RoBERTa's order of it from its list."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if name == "gpt-2":
        fields = GGUFReader(SHARED / "llamacpp_vocab" / "ggml-vocab-gpt-2.gguf").fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        pairs = fields["tokenizer.ggml.merges"].contents()
        end = "<|endoftext|>"
    else:
        listed = [
            (SHARED / "tokenizer_assets" / f"huggingface_gpt2_{part}.txt").read_text("utf-8")
            for part in ("vocab", "merges")
        ]
        tokens, pairs = listed[0].split("\n"), listed[1].split("\n")[1:]
        end = "</s>"
    vocab = {token: i for i, token in enumerate(tokens) if token}
    tok = Tokenizer(models.BPE(vocab, [tuple(p.split(" ")) for p in pairs if p]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    marks = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")
    tok.add_special_tokens([mark for mark in marks if mark in vocab])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=end, pad_token=end)
    lower(model_with(tokenizer, tmp_path / "model", "llama"), tmp_path)
    check_vectors(name, tokenizer, tmp_path / "model.gguf")


def check_vectors(name: str, tokenizer, path: Path) -> None:
    vocab = LlamaVocab(path)
    pairs = vectors(name)
    assert len(pairs) == 46
    for text, ids in pairs:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert vocab.encode(text, add_special=False, parse_special=False) == ids, text
    for text in TEXTS:
        assert vocab.encode(text) == tokenizer(text)["input_ids"], text
    vocab.close()


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("folder", ["tokenizer_assets", "tiny_lm"])
def test_real_byte_level_tokenizers(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / folder)
    lower(model_with(tokenizer, tmp_path / "model", "llama"), tmp_path)
    vocab = LlamaVocab(tmp_path / "model.gguf")
    for text in [*TEXTS, *(text for text, _ in vectors("qwen2"))]:
        assert vocab.encode(text) == tokenizer(text)["input_ids"], text
    vocab.close()
