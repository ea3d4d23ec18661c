"""The command line. A command's code stands in the module named here; nothing else is loaded."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import Any

import click

from edgelm import __version__
from edgelm.runtime.errors import EdgelmError, StorageError

COMMANDS = {
    "compile": "edgelm.compiler.commands.compile",
    "tune": "edgelm.compiler.commands.tune",
    "init": "edgelm.compiler.commands.init",
    "predict": "edgelm.runtime.commands.predict",
    "chat": "edgelm.runtime.commands.chat",
    "eval": "edgelm.runtime.commands.eval",
    "verify": "edgelm.runtime.commands.verify",
    "keygen": "edgelm.runtime.commands.keygen",
    "sign": "edgelm.runtime.commands.sign",
    "bench": "edgelm.runtime.commands.bench",
    "profile": "edgelm.runtime.commands.profile",
    "serve": "edgelm.runtime.commands.serve",
    "keys": "edgelm.runtime.commands.keys",
    "inspect": "edgelm.runtime.commands.inspect",
    "targets": "edgelm.runtime.commands.targets",
    "doctor": "edgelm.runtime.commands.doctor",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for; each holds a click command `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name]).command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as err:  # click would end with 1, which says that edgelm is broken
            if isinstance(err, BrokenPipeError):  # the reader of our output left, as `| head` does
                _drop_output()
                sys.exit(141)
            if err.errno == errno.ENOSPC and err.filename is None:
                _drop_output()
                raise StorageError("the output cannot be written: the disk is full") from err
            if err.filename is not None:
                raise StorageError(
                    f"{err.filename}: {err.strerror or err}",
                    hint="look at this path: its name, its permissions, the room on its disk",
                ) from err
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgelm.runtime.schema import nearest

            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}.")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgelm")
def cli() -> None:
    """Compile language models for the edge, and run them with one predict."""


def main() -> None:
    """Run the command line; a user's mistake ends in `error:` and `hint:`, never in a traceback."""
    _speak_utf8()
    try:
        cli(prog_name="edgelm", standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except click.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except EdgelmError as err:
        click.echo(f"error: {err.message}", err=True)
        if err.hint:
            click.echo(f"hint: {err.hint}", err=True)
        sys.exit(err.exit_code)


def _drop_output() -> None:
    """Let what is still buffered for stdout go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speak_utf8() -> None:
    """Answers are UTF-8 whatever the locale says: a pipe of cp1252 has no letters for most labels.

    What UTF-8 cannot hold, lone surrogates, becomes \\udc80, which JSON reads back."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _interrupted() -> None:
    goes_on = ": nothing is lost, the same command goes on from here"
    click.echo(
        "interrupted" + (goes_on if sys.argv[1:2] in (["compile"], ["tune"]) else ""), err=True
    )
    sys.exit(130)


if __name__ == "__main__":
    main()
