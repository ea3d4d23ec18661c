"""A Llama-like model of random weights in bfloat16, written shard by shard, one for each layer."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
from protocol import options, say

BLOCK = 2**24  # random values, written again and again
KEPT, EXPONENT = 0x807F, 0x3C00  # sign and mantissa of a bfloat16, 2**-7 to 2**-6
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Shapes = dict[str, tuple[int, ...]]


def write_shard(path: Path, shapes: Shapes, block: bytes) -> None:
    """A safetensors file."""
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            stream.write(block[: min(at, len(block))])
            at -= len(block)


def main() -> None:
    given = options()
    folder, source = Path(given["folder"]), Path(given["tokenizer"])
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    H, F, V = given["hidden_size"], given["intermediate_size"], config["vocab_size"]
    n_layers, n_heads = given["num_hidden_layers"], given["num_attention_heads"]
    config |= {name: given[name] for name in ("hidden_size", "intermediate_size")}
    config |= {"num_hidden_layers": n_layers, "num_attention_heads": n_heads}
    config |= {"num_key_value_heads": n_heads, "head_dim": H // n_heads, "dtype": "bfloat16"}
    config |= {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for name in TOKENIZER:
        shutil.copy(source / name, folder / name)
    values = np.random.default_rng(0).integers(0, 2**16, BLOCK, np.uint16)
    block = ((values & KEPT) | EXPONENT).astype("<u2").tobytes()
    square, wide = (H, H), (F, H)
    shards: list[Shapes] = [{"model.embed_tokens.weight": (V, H)}]
    for i in range(n_layers):
        layer = f"model.layers.{i}"
        shapes: Shapes = {f"{layer}.self_attn.{name}_proj.weight": square for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": wide for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (H, F)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (H,) for name in ("input", "post_attention")}
        shards.append(shapes)
    shards.append({"model.norm.weight": (H,), "lm_head.weight": (V, H)})
    where: dict[str, str] = {}
    for i, shapes in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / name, shapes, block)
        where |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    sizes = [int(np.prod(shape)) for shapes in shards for shape in shapes.values()]
    say(parameters=sum(sizes), largest_bytes=2 * max(sizes))


if __name__ == "__main__":
    main()
