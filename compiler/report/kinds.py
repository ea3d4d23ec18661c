"""What the page and the card ask of a kind of task; one file a kind answers."""

from __future__ import annotations

from typing import Protocol

from edgelm.compiler.report.blocks import CardParts, Section
from edgelm.compiler.report.data import DecoderData, EncoderData, ReportData
from edgelm.compiler.report.decoder import DecoderKind
from edgelm.compiler.report.encoder import EncoderKind
from edgelm.runtime.manifest import Variant


class Kind(Protocol):
    """The words and sections of one kind of task, for one bundle."""

    def does(self) -> str:
        """Ends the sentence `It …`."""
        ...

    def length(self) -> str:
        """A sentence on what becomes of long texts."""
        ...

    def facts(self, variant: Variant) -> list[str]:
        """The numbers of a variant's verdict."""
        ...

    def sections(self) -> list[Section]:
        """Those before recipe and provenance, in their order."""
        ...

    def card(self) -> CardParts: ...


def kind_of(data: ReportData) -> Kind:
    """The kind of task that the data is of."""
    if isinstance(data, DecoderData):
        return DecoderKind(data)
    assert isinstance(data, EncoderData), type(data)
    return EncoderKind(data)
