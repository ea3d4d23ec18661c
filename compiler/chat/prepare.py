"""prepare: read the conversations, and settle task and text limits from recipe, data and model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.compiler.chat.adapter import check_adapter
from edgelm.compiler.chat.data import load_chat_data
from edgelm.compiler.chat.template import end_of_turn, require_template
from edgelm.compiler.context import Context, Source
from edgelm.compiler.hf import load_tokenizer
from edgelm.compiler.passes import Pass
from edgelm.compiler.passes.prepare import FEW_TEXTS, check_cuts, max_tokens
from edgelm.compiler.training import is_trained
from edgelm.runtime.errors import ModelError
from edgelm.runtime.manifest import Task, TextLimits


class ChatPrepare(Pass):
    """Sets context.chat, context.task and context.text."""

    name = "prepare"

    def inputs(self, context: Context) -> None:
        assert context.source is not None

    def load(self, context: Context, folder: Path) -> None:
        recipe, source = context.recipe, context.source
        assert source is not None
        check_cuts(recipe, source)
        if recipe.adapter is not None:
            check_adapter(Path(recipe.adapter))
        tokenizer = load_tokenizer(source.folder, padded=False)
        context.chat = data = load_chat_data(
            recipe.data, trained=is_trained(recipe), seed=recipe.seed
        )
        require_template(tokenizer, (*data.train, *data.eval))
        for note in data.report.notes:
            context.note(note)
        ends = end_ids(source, tokenizer)
        if not ends:
            context.note("the model names no token that ends an answer: answers end at max_tokens")
        named = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        context.task = Task(
            kind="text-generation",
            end_ids=ends,
            chat=tokenizer.chat_template is not None,
            special_tokens=named,
        )
        pad_id = tokenizer.pad_token_id
        if pad_id is None:  # what stands in the padding is never looked at
            pad_id = ends[0] if ends else 0
        context.text = TextLimits(max_tokens=max_tokens(context), pad_id=int(pad_id))
        if len(data.eval) < FEW_TEXTS:
            n = len(data.eval)
            context.note(f"{n} evaluation rows are few: what is verified on them says little")


def end_ids(source: Source, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: those of generation_config.json and config.json, the tokenizer's
    end token, and the one that the chat template writes behind an answer. Raises ModelError."""
    found: set[int] = set()
    named = [source.config.get("eos_token_id"), tokenizer.eos_token_id, end_of_turn(tokenizer)]
    path = source.folder / "generation_config.json"
    if path.is_file():
        try:
            named.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
        except (OSError, ValueError, AttributeError) as err:
            raise ModelError(f"{path}: cannot be read: {err}") from err
    for value in named:
        found.update(
            int(i) for i in (value if isinstance(value, list) else [value]) if i is not None
        )
    return tuple(sorted(i for i in found if i >= 0))
