"""Decoders lose layers, groups of heads and columns, and stay plain models of their family."""

from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
import torch

from edgelm.compiler import load_recipe
from edgelm.compiler.distil import pruning
from edgelm.compiler.distil.pruning import Importance, Shape
from edgelm.compiler.hf import load_model
from edgelm.compiler.tune.sizes import count_weights
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task
from edgelm.targets.decoders import FAMILIES, FIXED_LAYERS

TASK = Task(kind="text-generation")
N_COLUMNS = 88


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


def summed_loss(outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
    found = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(found, batch["labels"][:, 1:].flatten())


@pytest.mark.parametrize("name", [n for n in tiny_decoders.FAMILIES if n != "smollm"])
def test_what_is_left_is_the_model_with_the_rest_made_zero(name: str, tmp_path: Path):
    """The oracle is the whole model: what parts left out add is set to zero, and layers left out
    add nothing at all to what they are given."""
    folder = tiny_decoders.make_decoder(tmp_path / "m", name, seed=3)
    small, whole = (load_model(folder, TASK, new_head=False) for _ in range(2))
    n_layers, family = whole.config.num_hidden_layers, whole.config.model_type
    ids = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    importance = Importance(
        torch.rand(n_layers, 2, generator=rng), torch.rand(n_layers, 128, generator=rng)
    )
    small = pruning.keep_best(small, importance, Shape(n_layers, 1, N_COLUMNS))
    kept = [i for i in range(n_layers) if i != 1 or family in FIXED_LAYERS]
    if family not in FIXED_LAYERS:
        small = pruning.keep_layers(small, kept)
    with torch.no_grad():
        for i, layer in enumerate(whole.model.layers):
            size = layer.self_attn.head_dim
            group = int(importance.heads[i].argmin())
            columns = importance.ffn[i].argsort(stable=True)[: 128 - N_COLUMNS]
            layer.self_attn.o_proj.weight[:, 2 * size * group : 2 * size * (group + 1)] = 0
            layer.mlp.down_proj.weight[:, columns] = 0
            if i not in kept:
                layer.self_attn.o_proj.weight[:] = 0
                layer.mlp.down_proj.weight[:] = 0
    torch.testing.assert_close(logits(small, ids), logits(whole, ids), rtol=0, atol=2e-4)
    small.save_pretrained(tmp_path / "small")
    again = load_model(tmp_path / "small", TASK, new_head=False)  # by transformers alone
    assert torch.equal(logits(small, ids), logits(again, ids))
    config = again.config
    assert (config.num_key_value_heads, config.num_attention_heads) == (1, 2)
    assert (config.intermediate_size, config.num_hidden_layers) == (N_COLUMNS, len(kept))
    assert again.num_parameters() < whole.num_parameters()


def test_a_layer_that_changes_nothing_goes(tmp_path: Path):
    folder = tiny_decoders.make_decoder(tmp_path / "m", "qwen3")
    model = load_model(folder, TASK, new_head=False)
    ids = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    changes = pruning.layer_changes(model, [batch])
    kept = pruning.most_changing(changes, len(changes) - 1)
    assert kept == [i for i in range(len(changes)) if i != 2]
    left = pruning.keep_layers(model, kept)
    torch.testing.assert_close(logits(left, ids), logits(model, ids), rtol=0, atol=1e-5)


def test_first_order_importance_of_a_group_is_the_change_of_the_loss(tmp_path: Path):
    """Beside finite differences."""
    folder = tiny_decoders.make_decoder(tmp_path / "m", "llama")
    model = load_model(folder, TASK, new_head=False).double()
    ids = torch.arange(20)[None] + 5
    batch = {"input_ids": ids, "labels": ids}
    found = pruning.measure(model, [batch], summed_loss)
    assert (found.heads.shape, found.ffn.shape) == ((4, 2), (4, 128))
    step, weight = 0.01, model.model.layers[2].self_attn.o_proj.weight
    second = slice(32, 64)  # of two groups, each of two heads of 16
    losses: list[float] = []
    with torch.no_grad():
        whole = weight[:, second].clone()
        for factor in (1 + step, 1 - step):
            weight[:, second] = factor * whole
            losses.append(float(summed_loss(model(input_ids=ids), batch)))
    slope = abs(losses[0] - losses[1]) / (2 * step)
    assert float(found.heads[2, 1]) == pytest.approx(slope, rel=1e-2)


def test_layers_keep_their_kind_of_attention(tmp_path: Path):
    folder = tiny_decoders.make_decoder(tmp_path / "m", "gemma3")
    model = load_model(folder, TASK, new_head=False)
    kinds = model.config.layer_types
    small = pruning.keep_layers(model, [1, 5, 6])
    assert kinds.count("full_attention") == 1
    assert small.config.layer_types == [kinds[1], kinds[5], kinds[6]]


@pytest.mark.parametrize(
    ("name", "changed", "config", "says"),
    [
        ("qwen2", {"prune.heads": 1}, {}, "llama.cpp's graph of qwen2"),
        ("smollm3", {"prune.layers": 1}, {}, "which of them know positions"),
        (
            "llama",
            {"prune.heads": 1},
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
            "not a multiple",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(
    name: str, changed: dict[str, Any], config: dict[str, Any], says: str, tmp_path: Path
):
    folder = tiny_decoders.make_decoder(tmp_path / "m", name, **config)
    keys = {
        "model": str(folder),
        "task": "text-generation",
        "targets": ["gguf:f16"],
        "data.train": "x.txt",
        **changed,
    }
    model = load_model(folder, TASK, new_head=False)
    with pytest.raises(ModelError, match=says):
        pruning.check(model.config, load_recipe(None, keys))
    assert set(FAMILIES) > set(FIXED_LAYERS)


def test_a_search_knows_how_many_weights_are_left(tmp_path: Path):
    folder = tiny_decoders.make_decoder(tmp_path / "m", "gemma3")
    cuts = {"prune.layers": 2, "prune.ffn": 0.5, "prune.heads": 1}
    keys = {"model": str(folder), "task": "text-generation", "data.train": "x.jsonl", **cuts}
    found = count_weights(folder, load_recipe(None, keys))
    model = pruning.keep_layers(load_model(folder, TASK, new_head=False), range(5))
    importance = Importance(torch.rand(5, 2), torch.rand(5, 128))
    small = pruning.keep_best(model, importance, Shape(5, 1, 64))
    assert found.stored == sum(p.numel() for p in small.parameters() if p.ndim == 2)
