"""measure: size, time to the first token, tokens per second and memory of a generation variant."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.compiler.context import Context
from edgelm.compiler.passes.measure import Measure
from edgelm.runtime.tokenizer import Text, Tokenizer


class ChatMeasure(Measure):
    """Sets the variant's `measured`."""

    def texts(self, context: Context) -> Sequence[Text]:
        """The prompts of the comparison, whole."""
        assert context.oracle and context.tokenizer_dir and context.task and context.text
        backend = Tokenizer(context.tokenizer_dir, context.text).backend
        plain = not context.task.chat
        prompts = context.oracle.answers.prompts
        return [backend.decode(p.ids, skip_special_tokens=plain) for p in prompts]
