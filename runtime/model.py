"""What every loaded bundle is: something that predicts, and is closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import UsageError
from edgelm.runtime.manifest import Manifest, Task, Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgelm.runtime.predictions import Piece


class Model(ABC):
    """A loaded bundle; use `with`, or `close()`. What `predict` takes is the subclasses' to say."""

    device: str

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        self._bundle: Bundle | None = bundle  # whose files an engine may read later
        self.manifest: Manifest = bundle.manifest
        self.variant = variant

    @property
    def task(self) -> Task:
        """What the model answers."""
        return self.manifest.task

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier; empty for the rest."""
        return self.task.labels

    @abstractmethod
    def predict(self, inputs: Any, **options: Any) -> Any:
        """Answer one input, or a list in its order."""

    def stream(self, prompt: Any, **options: Any) -> Iterator[Piece]:
        """Answer in pieces, as they are generated."""
        raise UsageError(
            f"the bundle's task is {self.task.kind}: it answers at once, not in pieces",
            hint="use predict",
        )

    @abstractmethod
    def close(self) -> None:
        """Free the engine; calling it twice is harmless."""

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
