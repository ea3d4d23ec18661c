"""Recovery: what is trained is what the files hold, and it answers more like the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from tiny_chat import chat_rows, make_chat_model
from tiny_data import labelled_rows, write_csv, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.compiler import Recipe, load_recipe
from edgelm.compiler.allocate.knapsack import solve
from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context
from edgelm.compiler.pipeline import plan
from edgelm.compiler.recover.optimizer import GridAdamW
from edgelm.compiler.recover.rounding import latents_near
from edgelm.compiler.recover.settings import check_recovery, recovery
from edgelm.runtime.errors import RecipeError
from edgelm.runtime.progress import Progress
from edgelm.targets.costs import Table
from edgelm.targets.feedback import round_to_grid
from edgelm.targets.gguf.unpack import unpack
from edgelm.targets.grid import Grid
from edgelm.targets.onnx.blockwise import quantize_blocks
from edgelm.targets.onnx.grids import grid_of
from edgelm.targets.onnx.quantize import quantize_columns

WIDE = dict(hidden_size=64, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recover")
    tiny.make_model(root / "encoder")
    make_chat_model(root / "decoder", tied=True, **WIDE)
    write_csv(root / "train.csv", labelled_rows(40))
    write_csv(root / "eval.csv", labelled_rows(4, start=50))
    write_jsonl(root / "train.jsonl", chat_rows(60))
    write_jsonl(root / "eval.jsonl", chat_rows(6, start=100))
    return root


def recipe_of(root: Path, *targets: str, decoder: bool = False, **changed: Any) -> Recipe:
    ending = "jsonl" if decoder else "csv"
    keys = {
        "model": str(root / ("decoder" if decoder else "encoder")),
        "task": "text-generation" if decoder else "text-classification",
        "cache_dir": str(root / "cache"),
        "targets": list(targets),
        "threads": 1,
        "data.train": str(root / f"train.{ending}"),
        "data.eval": str(root / f"eval.{ending}"),
        "max_tokens": 64,
        "train.method": "none",
        "recover.method": "train",
        "recover.epochs": 2,
        "recover.batch_size": 2,
        "recover.learning_rate": 3e-4,
        "verify.eval_tokens": 20,
        "verify.eval_answers": 1,
    }
    return load_recipe(None, keys | {k.replace("__", "."): v for k, v in changed.items()})


def lowered(recipe: Recipe, progress: Progress | None = None) -> Context:
    """The context behind the last variant's lowering; nothing is verified."""
    cache = StageCache(Path(str(recipe.cache_dir)))
    context = Context(recipe, cache, progress or Progress("quiet"))
    for step in plan(recipe, None):  # type: ignore[arg-type]
        if step.name == "gate":
            break
        if not step.name.startswith("verify"):
            step.execute(context)
    return context


def files(context: Context, variant: str) -> Path:
    return context.variants[variant].folder / "variants" / variant


def unpacked(context: Context, folder: Path) -> Path:
    """The Hugging Face directory of what the file holds."""
    folder.mkdir()
    unpack(files(context, "gguf-q4_0") / "model.gguf", folder, lambda done, total: None)
    return folder


def held(path: Path) -> dict[str, np.ndarray]:
    """A file's tensors by gguf's own reader."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in gguf.GGUFReader(path).tensors
    }


def distance(a: Any, b: Any, tokenizer: Any) -> float:
    """Mean KL of two Hugging Face models on answers that were not trained on."""
    total = []
    for row in chat_rows(6, start=100):
        ids, asked = (
            tokenizer(tokenizer.apply_chat_template(m, tokenize=False), return_tensors="pt")
            for m in (row["messages"], row["messages"][:1])
        )
        n_asked = asked["input_ids"].shape[1]
        with torch.inference_mode():
            p, q = (torch.log_softmax(m(**ids).logits[0, n_asked + 2 :], -1) for m in (a, b))
        total.append((p.exp() * (p - q)).sum(-1).mean())
    return float(torch.stack(total).mean())


def test_a_decoder_file_holds_what_was_trained(root, tmp_path):
    context = lowered(recipe_of(root, "gguf:q4_0", decoder=True))
    trained = context.recovered["gguf-q4_0"]
    weights = load_file(trained / "model.safetensors")
    back = load_file(unpacked(context, tmp_path / "back") / "model.safetensors")
    assert back.keys() == weights.keys()
    for name, values in weights.items():
        assert torch.equal(back[name].float(), values), name
    plain = lowered(recipe_of(root, "gguf:q4_0", decoder=True, recover__method="none"))
    auto: Any = AutoModelForCausalLM
    places = (root / "decoder", trained, unpacked(plain, tmp_path / "plain"))
    models = [auto.from_pretrained(place) for place in places]
    tokenizer = AutoTokenizer.from_pretrained(root / "decoder")
    with_recovery, without = (distance(models[0], m, tokenizer) for m in models[1:])
    assert with_recovery < without / 2
    losses = context.recoveries["gguf-q4_0"]["losses"]
    assert losses[-1] < losses[0]
    assert any("gguf-q4_0 is recovered" in note for note in context.notes)


class Stopping(Progress):
    """Is interrupted in the middle of the training."""

    def advance(self, done: int, total: int | None, detail: str = "") -> None:
        if total == 14 and done == 8:
            raise KeyboardInterrupt
        super().advance(done, total, detail)


def test_a_killed_training_goes_on(root, tmp_path):
    found = []
    for name in ("whole", "killed"):
        recipe = recipe_of(
            root, "gguf:q4_0", cache_dir=str(tmp_path / name), recover__epochs=0.35,
            recover__batch_size=3,
        )  # fmt: skip
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                lowered(recipe, Stopping("quiet"))
            assert list(tmp_path.glob("killed/recover gguf-q4_0/.*.partial/checkpoints/*"))
        context = lowered(recipe)
        assert context.recoveries["gguf-q4_0"]["steps"] == 14
        found.append(load_file(context.recovered["gguf-q4_0"] / "model.safetensors"))
    assert all(torch.equal(values, found[1][name]) for name, values in found[0].items())


@pytest.mark.parametrize("precision", ["q4_k_m", "iq4_nl", "q5_1"])
def test_mixed_types_and_encoders(precision, root):
    """Fixed points of a file with several types; float tensors are the trained ones too."""
    recipe = recipe_of(root, f"gguf:{precision}", recover__epochs=0.5)
    variant = f"gguf-{precision}"
    context = lowered(recipe)
    weights = load_file(context.recovered[variant] / "model.safetensors")
    before = load_file(root / "encoder" / "model.safetensors")
    found = held(files(context, variant) / "model.gguf")
    for name, source in (
        ("blk.0.attn_q.weight", "bert.encoder.layer.0.attention.self.query.weight"),
        ("blk.1.ffn_down.weight", "bert.encoder.layer.1.output.dense.weight"),
        ("blk.1.layer_output_norm.weight", "bert.encoder.layer.1.output.LayerNorm.weight"),
        ("token_embd.weight", "bert.embeddings.word_embeddings.weight"),
    ):
        assert np.array_equal(found[name], weights[source].numpy()), name
        assert not torch.equal(weights[source], before[source]), name


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (True, "model.layers.1.mlp.gate_proj.weight"),
        (False, "bert.encoder.layer.1.attention.self.key.weight"),
        (False, "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_onnx_files_hold_what_was_trained(decoder, name, root):
    context = lowered(recipe_of(root, "onnx:int4", decoder=decoder))
    weights = load_file(context.recovered["onnx-int4"] / "model.safetensors")
    before = load_file(root / ("decoder" if decoder else "encoder") / "model.safetensors")
    known = rows_in(files(context, "onnx-int4") / "model.onnx")
    assert not torch.equal(weights[name], before[name])
    assert {tuple(row) for row in weights[name].numpy()} <= known
    if decoder:  # an encoder's heads are trained too, and rounded to 8 bits
        for other, weight in weights.items():
            if weight.ndim == 2 and not torch.equal(weight, before[other]):
                assert {tuple(row) for row in weight.numpy()} <= known, other


def test_auto_files_hold_what_was_trained(root):
    """Each matrix on the grid of the type that was chosen for it."""
    largest = lowered(recipe_of(root, "onnx:auto", quantize__auto_size="9MB"))
    size = size_with(largest.tables["onnx"], {"int4", "int8"})
    context = lowered(recipe_of(root, "onnx:auto", quantize__auto_size=f"{size}B"))
    weights = load_file(context.recovered["onnx-auto"] / "model.safetensors")
    before = load_file(root / "encoder" / "model.safetensors")
    path = files(context, "onnx-auto") / "model.onnx"
    known = {"int4": rows_in(path), "int8": rows_in_columns(path)}
    kinds = set[str]()
    for joined, kind in context.types["onnx"].items():
        for name in joined.split(" + ") if kind in known else ():
            assert not torch.equal(weights[name], before[name])
            assert {tuple(row) for row in weights[name].numpy()} <= known[kind], name
            kinds.add(kind)
    assert kinds == known.keys()
    losses = context.recoveries["onnx-auto"]["losses"]
    assert losses[-1] < losses[0]


def size_with(table: Table, kinds: set[str]) -> int:
    """Bytes of a file within which matrices of all these types are chosen."""
    items = [[(option.n_bytes, option.cost) for option in row.options] for row in table.rows]
    least, most = (sum(option[i][0] for option in items) for i in (0, -1))
    for budget in np.linspace(least, most, 40).astype(int).tolist():
        chosen = zip(table.rows, solve(items, budget), strict=True)
        if kinds <= {row.options[i].kind for row, i in chosen}:
            return table.rest_bytes + budget
    raise AssertionError(table)


def rows_in_columns(path: Path) -> set[tuple[float, ...]]:
    """Of all matrices with 8 bits and one scale an output, or a row of a table."""
    graph = onnx.load(path).graph
    arrays = {i.name: numpy_helper.to_array(i, str(path.parent)) for i in graph.initializer}
    known: set[tuple[float, ...]] = set()
    for key in [key for key in arrays if key.endswith(".int8")]:
        values = arrays[key] * arrays[f"{key.removesuffix('.int8')}.scale"]
        known |= {tuple(row) for rows in (values, values.T) for row in rows}
    return known


def rows_in(path: Path) -> set[tuple[float, ...]]:
    """Of all matrices with 4 bits."""
    graph = onnx.load(path).graph
    arrays = {i.name: numpy_helper.to_array(i, str(path.parent)) for i in graph.initializer}
    known: set[tuple[float, ...]] = set()
    for key in [key for key in arrays if key.endswith(".q4")]:
        q, scale = arrays[key], arrays[f"{key.removesuffix('.q4')}.scale"].astype(np.float32)
        levels = np.stack([q & 15, q >> 4], -1).reshape(*q.shape[:2], -1).astype(np.float32) - 8
        rows = (levels * scale.reshape(*q.shape[:2], 1)).reshape(len(q), -1)
        known |= {tuple(row) for row in rows}
    assert known
    return known


def test_blocks_on_a_grid_are_found_again():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 100, generator=generator) * torch.logspace(-6, 2, 200)[:, None]
    weight[3] = 0
    weight[:, :4] *= 30
    _, scale = quantize_blocks(weight, 4)
    grid = Grid(scale, 32, -8, 7, peak=7)
    for factor in (0.3, 1, 1.4):  # as weights may wander while training
        values = grid.round(weight * factor)
        q, again = quantize_blocks(values, 4)
        levels = torch.stack([q & 15, q >> 4], -1).reshape(*q.shape[:2], 32).float() - 8
        back = (levels * again[..., None]).reshape(200, -1)[:, :100]
        assert torch.equal(back, values)


@pytest.mark.parametrize("reduce_range", [True, False])
def test_columns_on_a_grid_are_found_again(reduce_range):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 100, generator=generator) * torch.logspace(-6, 2, 200)[:, None]
    weight[3] = 0
    grid = grid_of(weight, "int8", reduce_range=reduce_range)
    assert grid is not None
    for moved in (weight * 0.3, weight, weight + 0.01):  # as weights may wander while training
        values = grid.round(moved)
        q, scales = quantize_columns(values.T.numpy(), reduce_range=reduce_range)
        assert np.array_equal((q * scales).T, values.numpy())
        assert not values[3].any()


def test_rounding_lessens_what_the_product_is_off_by():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    x += 0.1 * torch.randn(500, 64, generator=generator)
    weight = torch.randn(16, 64, generator=generator)
    scale = weight.reshape(16, 2, 32).abs().amax(-1) / 7
    grid = Grid(scale, 32, -8, 7)

    def error(values: torch.Tensor) -> float:
        return float(((weight - values) @ x.T).square().sum())

    found = round_to_grid(weight, grid, x.T @ x)
    assert torch.equal(grid.round(found), found)
    assert error(found) < error(grid.round(weight)) / 5
    assert torch.equal(round_to_grid(weight, grid, torch.eye(64)), grid.round(weight))
    near = latents_near(weight, found, grid)
    assert torch.equal(grid.round(near), found)
    assert (near - weight).abs().max() <= (found - weight).abs().max()


def test_the_optimizer_goes_on_from_its_state():
    grid = Grid(torch.full((4, 1), 0.25), 8, -8, 7)
    start = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))

    def made() -> tuple[torch.nn.Parameter, GridAdamW]:
        weight = torch.nn.Parameter(start.clone())
        return weight, GridAdamW({"w": weight}, {"w": grid}, {"w": start.clone()}, lr=0.05)

    def steps(weight: torch.nn.Parameter, optimizer: GridAdamW, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
            assert torch.equal(grid.round(weight.data), weight.data)

    whole, optimizer = made()
    steps(whole, optimizer, 60)
    first, half = made()
    steps(first, half, 30)
    state = half.state_dict()
    second, other = made()
    other.load_state_dict(state)
    assert torch.equal(second, first)
    steps(second, other, 30)
    assert torch.equal(second, whole)
    assert (whole - target).abs().max() <= 0.25 + 1e-6


def test_which_variants_are_recovered(root):
    recipe = recipe_of(root, "gguf:q4_0", "gguf:q8_0", "onnx:int8", recover__method="auto")
    assert [recovery(recipe, spec) for spec in recipe.targets] == ["round", "none", "none"]
    asked = recipe_of(root, "gguf:q4_0", "gguf:q8_0", "onnx:int8", recover__method="round")
    assert [recovery(asked, spec) for spec in asked.targets] == ["round", "round", "none"]
    autos = recipe_of(
        root, "gguf:auto", "onnx:auto", recover__method="auto", quantize__auto_size="1MB"
    )
    assert [recovery(autos, spec) for spec in autos.targets] == ["none", "round"]
    bare = recipe_of(root, "gguf:q4_0", data__train=None, recover__method="auto")
    assert recovery(bare, "gguf:q4_0") == "none"
    with pytest.raises(RecipeError, match="needs training data"):
        check_recovery(recipe_of(root, "gguf:q4_0", data__train=None))
    with pytest.raises(RecipeError, match="none of the targets"):
        check_recovery(recipe_of(root, "onnx:int8"))
    with pytest.raises(RecipeError, match=r"recover.epochs: 0"):
        recipe_of(root, "gguf:q4_0", recover__epochs=0)
