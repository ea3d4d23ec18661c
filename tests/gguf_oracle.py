"""Logits and token ids by llama.cpp's plain interface, and logits by Hugging Face; broken files."""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.check import read_header

# Loads each file given and runs tokens through it; it must never die.
RUN_ALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gguf_oracle import llama_logits
from edgelm.runtime.errors import BundleError
from edgelm.targets.gguf.facts import read_facts
from edgelm.targets.gguf.shards import read_model
for path in map(Path, sys.argv[2:]):
    try:
        read_facts(read_model(path), path)
        llama_logits(path, [1, 2, 3], n_ctx=64)
        print("opened")
    except (BundleError, OSError):
        print("refused")
"""


def llama_logits(path: Path, ids, n_ctx=128) -> np.ndarray:
    """Logits (n, V) of all positions, in one call; keys and values stay float32."""
    library = bindings.load()
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise OSError(f"{path}: {bindings.last_errors()}")
    how = library.llama_context_default_params()
    how.n_ctx = how.n_batch = how.n_ubatch = n_ctx
    how.n_threads = how.n_threads_batch = 1
    how.type_k = how.type_v = 0
    how.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = library.llama_init_from_model(model, how)
    if not context:
        library.llama_model_free(model)
        raise OSError(f"{path}: {bindings.last_errors()}")
    batch = library.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    status = library.llama_decode(context, batch)
    n_vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    if status == 0:
        rows = library.llama_get_logits(context)
        logits = np.ctypeslib.as_array(rows, shape=(len(ids), n_vocab)).copy()
    library.llama_batch_free(batch)
    library.llama_free(context)
    library.llama_model_free(model)
    if status != 0:
        raise OSError(f"{path}: {status}: {bindings.last_errors()}")
    return logits


def llama_vectors(path: Path, ids) -> np.ndarray:
    """The vector (H,) of one text, pooled by llama.cpp as the file says."""
    library = bindings.load()
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), params)
    how = library.llama_context_default_params()
    how.n_ctx = how.n_batch = how.n_ubatch = 128
    how.n_threads = how.n_threads_batch = 1
    how.embeddings = True
    context = library.llama_init_from_model(model, how)
    tokens = (library.llama_token * len(ids))(*ids)
    batch = library.llama_batch_get_one(tokens, len(ids))
    assert library.llama_decode(context, batch) == 0, bindings.last_errors()
    values = library.llama_get_embeddings_seq(context, 0)
    vector = np.ctypeslib.as_array(values, shape=(library.llama_model_n_embd(model),)).copy()
    library.llama_free(context)
    library.llama_model_free(model)
    return vector


class LlamaVocab:
    """llama.cpp's own tokenizer of a file."""

    def __init__(self, path: Path) -> None:
        self._library = bindings.load()
        params = self._library.llama_model_default_params()
        params.vocab_only = True
        self._model = self._library.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, bindings.last_errors()
        self.vocab = self._library.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special=True, parse_special=True) -> list[int]:
        raw = text.encode()
        buffer = (self._library.llama_token * (len(raw) + 16))()
        n = self._library.llama_tokenize(
            self.vocab, raw, len(raw), buffer, len(buffer), add_special, parse_special
        )
        assert n >= 0
        return list(buffer[:n])

    def decode(self, ids) -> str:
        tokens = (self._library.llama_token * max(1, len(ids)))(*ids)
        size = 64 * len(ids) + 256
        text = ctypes.create_string_buffer(size)
        n = self._library.llama_detokenize(self.vocab, tokens, len(ids), text, size, False, True)
        assert n >= 0
        return text.raw[:n].decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        return bool(self._library.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        self._library.llama_model_free(self._model)


def hf_logits(model_dir: Path, ids) -> np.ndarray:
    """Logits (n, V) in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([list(map(int, ids))])).logits[0].numpy()


def some_ids(model_dir: Path, n: int) -> np.ndarray:
    """Seeded token ids, those of rows beyond the vocabulary among them."""
    rows = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(1).integers(0, rows, n)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference as a share of the spread."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def outcomes(paths: list[Path]) -> list[str]:
    """What came of each, `opened` or `refused`, in a process of its own."""
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, tests, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def changed_headers(path: Path, folder: Path, n: int = 60) -> list[Path]:
    """Copies of a file, each with a few bytes of its header changed."""
    raw = path.read_bytes()
    size = min(t.offset for t in read_header(path).tensors.values())
    graph = raw.index(b".block_count")  # the graph's keys stand before the vocabulary
    rng = random.Random(1)
    paths = []
    for i in range(n):
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(size) if i % 3 == 0 else graph + rng.randrange(900)
            changed[at] = rng.choice((0, 255, rng.randrange(256)))
        paths.append(folder / f"{i}.gguf")
        paths[-1].write_bytes(changed)
    return paths
