"""edgelm chat"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.commands.generate_flags import generate_flags, given, speculates
from edgelm.runtime.commands.trust_flags import trust_flags
from edgelm.runtime.engine import Device

if TYPE_CHECKING:
    from edgelm.runtime.model import Model
    from edgelm.runtime.trust.policy import Trust

FENCE = '"""'
HELP = """\
/reset         begin anew, the system message stays
/system TEXT   begin anew with this system message
/exit          leave, as Ctrl-D does
A line that ends in a backslash goes on in the next; lines between \"\"\" are one message."""


@click.command(name="chat")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="A variant's or a target's name; the fastest when left out.")
@device_option()
@click.option("--threads", type=int, help="Threads of the engine.")
@click.option("--draft", type=click.Path(path_type=Path), help="A smaller bundle, for guesses.")
@click.option("--context-tokens", type=int, help="Length of the context; the bundle's own.")
@click.option("--system", help="The system message.")
@trust_flags
@generate_flags("logprobs")
def command(
    bundle: Path,
    variant: str | None,
    device: Device,
    threads: int | None,
    draft: Path | None,
    context_tokens: int | None,
    system: str | None,
    trust: Trust,
    **flags: Any,
) -> None:
    """Talk with BUNDLE in the terminal. /help lists what can be typed."""
    from edgelm.runtime.chat_model import ChatModel
    from edgelm.runtime.errors import UsageError
    from edgelm.runtime.load import load

    options = {"on_long": "slide", **given(flags)}
    with load(
        bundle,
        variant=variant,
        device=device,
        threads=threads,
        context_tokens=context_tokens,
        speculate=speculates(flags),
        draft=draft,
        trust=trust,
    ) as model:
        if not isinstance(model, ChatModel) or not model.task.chat:
            raise UsageError(f"{bundle}: it is no chat model (task {model.task.kind})")
        click.echo(f"{model.manifest.name}, {model.variant.name}; /help, /exit", err=True)
        Chat(model, system, options).run(messages(_line))


class Chat:
    """A conversation under way."""

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]) -> None:
        self._model, self._system, self._options = model, system, options
        self._said: list[dict[str, str]] = []

    def run(self, typed: Iterator[str]) -> None:
        """Answer each message, and do what the others ask for."""
        for text in typed:
            name, _, rest = text.partition(" ")
            if name == "/exit":
                return
            if name == "/help":
                click.echo(HELP, err=True)
            elif name in ("/reset", "/system"):
                self._said = []
                if name == "/system":
                    self._system = rest.strip() or None
                click.echo("a new conversation", err=True)
            elif text.startswith("/"):
                click.echo(f"{name} is not known; /help lists what is", err=True)
            elif text.strip():
                self._answer(text)

    def _answer(self, text: str) -> None:
        from edgelm.runtime.errors import InputError

        said = [*self._said, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        started, first, parts = time.perf_counter(), None, list[str]()
        usage = None
        pieces = self._model.stream([*system, *said], **self._options)
        try:
            for piece in pieces:
                first = first or time.perf_counter()
                click.echo(piece.text, nl=False)
                parts.append(piece.text)
                usage = piece.usage
        except KeyboardInterrupt:  # ends the answer, not the chat
            click.echo(" …", nl=False)
        except InputError as err:
            click.echo(f"error: {err.message}", err=True)
            return
        click.echo()
        self._said = [*said, {"role": "assistant", "content": "".join(parts)}]
        if usage is not None and first is not None:
            seconds = time.perf_counter() - first
            rate = (usage.answer_tokens - 1) / seconds if usage.answer_tokens > 1 else 0.0
            click.echo(
                f"[{usage.prompt_tokens} tokens read, {usage.reused_tokens} of them held; "
                f"first after {first - started:.2f} s, {rate:.0f} tokens/s]",
                err=True,
            )


def messages(read: Callable[[str], str]) -> Iterator[str]:
    """Messages of one or several lines, until `read` raises EOFError."""
    while True:
        try:
            text = read("> ")
            if text.strip() == FENCE:
                lines: list[str] = []
                while (line := read("… ")).strip() != FENCE:
                    lines.append(line)
                text = "\n".join(lines)
            while text.endswith("\\"):
                text = text[:-1] + "\n" + read("… ")
        except EOFError:
            return
        yield text


def _line(prompt: str) -> str:
    """A line of stdin, prompted for on stderr, so that stdout holds answers alone."""
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
