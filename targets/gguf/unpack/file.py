"""The opened file: its keys by their names in the graph, its tensors, its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf.decoders import DECODERS
from edgelm.targets.gguf.llama import Graph
from edgelm.targets.gguf.shards import shard_names
from edgelm.targets.gguf.vocab.base import CONTROL, PHI3_NEEDS

# model_type by graph; Mistral's files say they are Llama's, and are
FAMILIES = {graph.arch: family for family, graph in reversed(DECODERS.items())}
# what llama.cpp takes for the end of a turn by its name alone
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|eom_id|>")


class File:
    """A checked file, or set of files, of one of the decoder graphs."""

    def __init__(self, path: Path, arch: str) -> None:
        from gguf import GGUFReader

        self.path = path
        self.family = FAMILIES[arch]
        self.graph: Graph = DECODERS[self.family]
        first, *others = [GGUFReader(path.with_name(name)) for name in shard_names(path.name)]
        prefix = f"{arch}."
        self._fields = first.fields
        self.keys: dict[str, Any] = {
            name[len(prefix) :]: field.contents()
            for name, field in first.fields.items()
            if name.startswith(prefix)
        }
        self.tensors = {t.name: t for reader in (first, *others) for t in reader.tensors}
        self.tokens: list[str] = self.vocab("tokens", [])
        self.types: list[int] = self.vocab("token_type", [1] * len(self.tokens))
        if not self.tokens:
            raise ModelError(f"{path}: it holds no vocabulary")

    def vocab(self, key: str, default: Any) -> Any:
        """A value of `tokenizer.ggml.*`."""
        field = self._fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    @property
    def strips_like_phi3(self) -> bool:
        """Whether llama.cpp drops white space after its special tokens."""
        field = self._fields.get("general.name")
        name = "" if field is None else str(field.contents()).lower()
        return ("phi-3" in name or "phi3" in name) and set(PHI3_NEEDS) <= set(self.tokens)

    @property
    def chat_template(self) -> str | None:
        """The template of its chats."""
        field = self._fields.get("tokenizer.chat_template")
        return None if field is None else str(field.contents())

    def token_id(self, role: str) -> int | None:
        """The id of `bos`, `eos`, `eot`, `eom`, `unknown` or `padding`."""
        value = self.vocab(f"{role}_token_id", None)
        return None if value is None or value >= len(self.tokens) else int(value)

    def end_ids(self) -> list[int]:
        """What ends an answer: what the file says, then the names that always do."""
        stated = [self.token_id(role) for role in ("eos", "eot", "eom")]
        named = [
            i
            for i, token in enumerate(self.tokens)
            if token in _TURN_ENDS and self.types[i] == CONTROL
        ]
        return [i for i in dict.fromkeys([*stated, *named]) if i is not None]

    def adds(self, what: str, default: bool) -> bool:
        """Whether `bos` or `eos` is put to every text."""
        return bool(self.vocab(f"add_{what}_token", default))

    def table(self, name: str) -> list[float] | None:
        """A vector of the file, as numbers."""
        found = self.tensors.get(name)
        return None if found is None else [float(v) for v in found.data.reshape(-1)]
