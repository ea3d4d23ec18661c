"""What the program's ends say: broken disks, interrupts, pipes in other encodings."""

from __future__ import annotations

import io
import sys

import click
import pytest

from edgelm import __main__ as program


def failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, run_cli):
    def run(name: str, error: BaseException):
        monkeypatch.setattr(
            program.LazyGroup, "get_command", lambda self, ctx, cmd_name: failing(error)
        )
        return run_cli(name)

    return run


def test_a_path_that_the_disk_refuses_is_an_error_with_a_hint(fail) -> None:
    run = fail("predict", OSError(36, "File name too long", "aaa"))
    assert run.code == 5
    assert run.err.startswith("error: aaa: File name too long\nhint: ")


def test_only_compile_goes_on_after_an_interrupt(fail) -> None:
    assert fail("predict", KeyboardInterrupt()).err.strip() == "interrupted"
    run = fail("compile", KeyboardInterrupt())
    assert (run.code, run.err.strip().endswith("goes on from here")) == (130, True)


def test_answers_are_utf8_on_a_pipe_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    monkeypatch.setattr(sys, "argv", ["edgelm", "--version"])
    program.main()
    sys.stdout.write("卡 \udc80")
    sys.stdout.flush()
    assert raw.getvalue().endswith("卡 \\udc80".encode())
